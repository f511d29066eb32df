"""The CRI framing against a plain reference, however the output is split; log files that fail, rotate and recover."""

from __future__ import annotations

import itertools
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.errors import HostError
from bridge.monitor.logs import LINE_LIMIT, Clock, Framer, LogFile

ENTRY = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)", re.DOTALL)
STAMP = b"2026-01-02T03:04:05.000000006Z"


def entries(data: bytes) -> list[tuple[bytes, bytes]]:
    """Tag and text of each entry."""
    assert not data or data.endswith(b"\n")
    found = []
    for line in data.split(b"\n")[:-1]:
        match = ENTRY.fullmatch(line)
        assert match is not None, line[:100]
        found.append((match[3], match[4]))
    return found


def frame(chunks: list[bytes]) -> list[tuple[bytes, bytes]]:
    framer = Framer(b"stdout")
    return entries(b"".join(bytes(framer.feed(chunk, STAMP)) for chunk in chunks) + framer.flush(STAMP))


def reference(data: bytes) -> list[tuple[bytes, bytes]]:
    """A loop per line."""
    found: list[tuple[bytes, bytes]] = []
    lines = data.split(b"\n")
    rest = lines.pop()
    for line in lines:
        while len(line) > LINE_LIMIT:
            found.append((b"P", line[:LINE_LIMIT]))
            line = line[LINE_LIMIT:]
        found.append((b"F", line))
    while rest:
        found.append((b"P", rest[:LINE_LIMIT]))
        rest = rest[LINE_LIMIT:]
    return found


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if b > a]


_near_limit = st.integers(-3, 3).map(lambda d: LINE_LIMIT + d) | st.integers(-2, 2).map(lambda d: 2 * LINE_LIMIT + d)
_line = st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")) | (st.integers(0, 200) | _near_limit).map(lambda n: b"x" * n)


@given(st.lists(_line, max_size=12), st.binary(max_size=5), st.lists(st.integers(0, 1 << 20), max_size=12))
@settings(max_examples=300, deadline=None)
@example([b"x" * LINE_LIMIT], b"", [LINE_LIMIT])
@example([b"x" * (LINE_LIMIT + 1)], b"", [LINE_LIMIT])
@example([b"x" * (3 * LINE_LIMIT)], b"end", [5, LINE_LIMIT + 5])
def test_any_splitting_gives_what_a_loop_per_line_gives(lines: list[bytes], end: bytes, cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines) + end
    assert frame(split(data, cuts)) == reference(data)


def test_every_single_split_of_a_small_output() -> None:
    data = b"one\n\ntwo\r\n\xff\xfe\xc3\nlast"
    expected = [(b"F", b"one"), (b"F", b""), (b"F", b"two\r"), (b"F", b"\xff\xfe\xc3"), (b"P", b"last")]
    for a in range(len(data) + 1):
        for b in range(a, len(data) + 1):
            assert frame([data[:a], data[a:b], data[b:]]) == expected


@given(st.lists(st.integers(1, 3 * LINE_LIMIT), min_size=1, max_size=20))
@settings(deadline=None)
def test_no_more_than_one_line_is_kept(sizes: list[int]) -> None:
    framer = Framer(b"stdout")
    for size in sizes:
        framer.feed(b"x" * size, STAMP)
        assert len(framer.rest) <= LINE_LIMIT


def test_the_entry_is_as_the_kubelet_parses_it() -> None:
    assert bytes(Framer(b"stderr").feed(b"hello world\n", STAMP)) == STAMP + b" stderr F hello world\n"


def test_clock_keeps_nine_decimals_and_rolls_over() -> None:
    times = iter([1_700_000_000_999_999_999, 1_700_000_001_000_000_000, 1_700_000_001_000_000_001])
    clock = Clock(lambda: next(times))
    assert clock.stamp() == b"2023-11-14T22:13:20.999999999Z"
    assert clock.stamp() == b"2023-11-14T22:13:21.000000000Z"
    assert clock.stamp() == b"2023-11-14T22:13:21.000000001Z"


def test_log_is_made_with_its_directory_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "c" / "0.log"
    for text in (b"a\n", b"b\n"):
        log = LogFile(path, Clock())
        log.write(text)
        log.close()
    assert path.read_bytes() == b"a\nb\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_unusable_path_is_a_host_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"file/0\.log"):
        LogFile(tmp_path / "file" / "0.log", Clock())


def test_who_may_write_to_the_logs_directory_does_not_choose_the_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(HostError, match=name):
            LogFile(tmp_path / name, Clock())
    assert not victim.exists()
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(HostError, match="not a regular file"):
        LogFile(tmp_path / "fifo", Clock())
    os.close(reader)
    (tmp_path / "moved").mkdir()
    (tmp_path / "logs").symlink_to("moved")  # as an operator may do with /var/log
    LogFile(tmp_path / "logs" / "pod" / "0.log", Clock()).close()
    assert (tmp_path / "moved" / "pod" / "0.log").exists()


def test_reopen_after_rename_continues_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = LogFile(path, Clock())
    log.write(b"old\n")
    path.rename(tmp_path / "0.log.1")
    log.write(b"between\n")
    log.reopen()
    log.write(b"new\n")
    log.close()
    assert (tmp_path / "0.log.1").read_bytes() == b"old\nbetween\n"
    assert path.read_bytes() == b"new\n"


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d" / "0.log"
    log = LogFile(path, Clock())
    (tmp_path / "d").rename(tmp_path / "moved")
    (tmp_path / "d").write_text("in the way")
    with pytest.raises(HostError):
        log.reopen()
    log.write(b"still\n")
    log.close()
    assert (tmp_path / "moved" / "0.log").read_bytes() == b"still\n"


class _FullDisk:
    """os.write with ``room`` bytes left on the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr("bridge.monitor.logs.os.write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(28, os.strerror(28))
        written = self._write(fd, bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_full_disk_costs_lines_and_says_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = STAMP + b" stdout F x\n"
    log = LogFile(tmp_path / "0.log", Clock())
    log.write(line)
    disk = _FullDisk(monkeypatch, 10)
    with caplog.at_level(logging.ERROR, logger="bridge.monitor.logs"):
        log.write(line)
        log.write(line)
        log.write(line)
    assert len(caplog.records) == 1, "one word per episode"
    assert log.lost_bytes == 3 * len(line)
    disk.room = 1 << 20
    log.write(line)
    log.write(line)
    log.close()
    lines = (tmp_path / "0.log").read_bytes().split(b"\n")
    assert lines[0] + b"\n" == line
    assert lines[1] == line[:10], "what was cut off stands alone"
    assert re.fullmatch(rb"\S+ stderr F \[cri-bridge: %d bytes of log could not be written here\]" % (3 * len(line)), lines[2])
    assert lines[3:] == [line[:-1], line[:-1], b""]
