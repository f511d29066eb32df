"""The suite's own reader of container logs."""

import pytest

from bridge.testing.conformance.logs import parse, written

LOG = (
    b"2026-11-22T10:00:00.000000001Z stdout P ab\n"
    b"2026-11-22T10:00:00.000000002Z stderr F oh\n"
    b"2026-11-22T10:00:00.000000003+02:00 stdout F c \r\n"
    b"2026-11-22T10:00:00.000000004Z stdout F \n"
    b"2026-11-22T10:00:00.000000005Z stdout F half of a li"
)


def test_parts_make_lines_and_streams_stay_apart() -> None:
    lines = parse(LOG)
    assert len(lines) == 4
    assert written(lines) == b"abc \r\n\n"
    assert written(lines, "stderr") == b"oh\n"


@pytest.mark.parametrize("line", [b"hello", b"2026-11-22T10:00:00.1Z stdin F x", b"2026-11-22T10:00:00.1Z stdout x", b"10:00 stdout F x"])
def test_another_form_is_told(line: bytes) -> None:
    with pytest.raises(AssertionError, match="not a line of a container log"):
        parse(line + b"\n")
