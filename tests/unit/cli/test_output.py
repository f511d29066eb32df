"""Tables, sizes, narration and the waterfall, on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli.narration import Narration
from bridge.cli.output import size, table
from bridge.cli.waterfall import draw


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_in_a_pipe() -> None:
    out = io.StringIO()
    table(("NAME", "STATE"), [(("runc", "bold"), "enabled"), ("a-long-name", "")], to=out)
    assert out.getvalue() == "NAME         STATE\nrunc         enabled\na-long-name\n"


def test_an_empty_table_has_its_headers() -> None:
    out = io.StringIO()
    table(("NAME", "STATE"), [], to=out)
    assert out.getvalue() == "NAME  STATE\n"


def test_colour_on_a_terminal() -> None:
    out = Terminal()
    table(("NAME",), [(("[red]runc", "red"),)], to=out)
    assert "[red]runc" in out.getvalue()  # text is text, never markup


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_narration_is_plain_in_a_pipe_and_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        tell = Narration(stream)
        tell.heading("Part")
        tell.quote("log", ["one", "two"])
        tell.verdict(False, "bad")
    assert plain.getvalue() == "\nPart\n  log │ one\n  log │ two\n  ✗ bad\n"
    assert "\x1b[31m✗\x1b[0m bad" in coloured.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Narration(out).heading("Part")
    assert "\x1b" not in out.getvalue()


def span(name: str, start_ms: float, duration_ms: float, depth: int = 0) -> admin.Span:
    return admin.Span(name=name, start=int(start_ms * 1e6), duration=int(duration_ms * 1e6), depth=depth)


def test_waterfall_shows_when_and_how_long() -> None:
    lines = list(draw([span("run pod", 0, 100), span("cni add", 50, 50, 1)], width=60))
    assert lines[0].endswith("100.0")
    assert lines[1].startswith("run pod")
    assert "100.0" in lines[1]
    first, second = lines[1].index("█"), lines[2].index("█")
    assert second > first
    assert max(map(len, lines)) <= 60


def test_waterfall_shows_the_shortest_span() -> None:
    lines = list(draw([span("run pod", 0, 1000), span("quick", 999.9, 0.001, 1)], width=60))
    assert lines[2].rstrip().endswith(("▏", "█"))


def test_requests_far_apart_have_scales_of_their_own() -> None:
    lines = list(draw([span("run pod", 0, 10), span("create", 5000, 20)], width=60))
    assert [line.split()[-1] for line in lines if line.startswith(" ")] == ["10.0", "20.0"]


def test_no_spans_no_lines() -> None:
    assert list(draw([])) == []
