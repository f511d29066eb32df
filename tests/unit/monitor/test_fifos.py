"""Fifos of held processes, and the spool that keeps a shim's log read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.monitor import fifos
from bridge.monitor.fifos import Spool


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_a_writer_left_is_read_and_its_end_is_seen(tmp_path: Path) -> None:
    ends = fifos.open_all(tmp_path / "io", terminal=False, stdin=True, owner=None)
    assert sorted(ends.outputs) == ["stderr", "stdout"]
    assert stat.S_IMODE((tmp_path / "io").stat().st_mode) == 0o700
    with open(tmp_path / "io" / "stdout", "wb", buffering=0) as writer:
        writer.write(b"words")
        assert os.read(ends.outputs["stdout"], 99) == b"words"
        with pytest.raises(BlockingIOError):
            os.read(ends.outputs["stdout"], 99)
    assert os.read(ends.outputs["stdout"], 99) == b"", "the last writer has gone"
    assert ends.stdin is not None
    os.write(ends.stdin, b"to it")
    reader = os.open(tmp_path / "io" / "stdin", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 99) == b"to it"
    os.close(reader)
    ends.close()


def test_a_terminal_has_one_output_and_an_owner_gets_the_fifos(tmp_path: Path) -> None:
    ends = fifos.open_all(tmp_path, terminal=True, stdin=False, owner=(os.getuid(), os.getgid()))
    assert list(ends.outputs) == ["stdout"]
    assert ends.stdin is None
    assert sorted(os.listdir(tmp_path)) == ["stdout"]
    assert (tmp_path / "stdout").stat().st_uid == os.getuid()
    ends.close()


def test_what_waits_in_a_fifo_is_there_for_who_opens_it_again(tmp_path: Path) -> None:
    first = fifos.open_all(tmp_path, terminal=True, stdin=False, owner=None)
    both = os.open(tmp_path / "stdout", os.O_RDWR)  # as a shim holds it
    os.write(both, b"kept")
    first.close()
    second = fifos.open_all(tmp_path, terminal=True, stdin=False, owner=None)
    assert os.read(second.outputs["stdout"], 99) == b"kept"
    os.close(both)
    second.close()


def test_something_else_in_the_place_of_a_fifo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("no fifo")
    with pytest.raises(HostError, match="stderr is not a fifo"):
        fifos.open_all(tmp_path, terminal=False, stdin=False, owner=None)
    (tmp_path / "stdout").unlink()
    (tmp_path / "stdout").symlink_to("/dev/null")
    with pytest.raises(HostError, match="can't make the fifos"):
        fifos.open_all(tmp_path, terminal=False, stdin=False, owner=None)


def test_a_spool_keeps_the_last_of_what_was_said(tmp_path: Path) -> None:
    spool = Spool(fifos.open_one(tmp_path / "log"), tmp_path / "kept", limit=2000)
    with open(tmp_path / "log", "wb", buffering=0) as writer:
        for number in range(100):
            writer.write(b"%099d\n" % number)
            spool.readable()
    spool.readable()  # nothing there: no harm
    spool.close()
    kept = (tmp_path / "kept.1").read_bytes() + (tmp_path / "kept").read_bytes()
    assert kept.endswith(b"%099d\n" % 99)
    assert 1000 <= len(kept) <= 2000
    assert kept == b"".join(b"%099d\n" % number for number in range(100 - len(kept) // 100, 100))


def test_a_spool_goes_on_where_another_stopped(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        spool = Spool(fifos.open_one(tmp_path / "log"), tmp_path / "kept", limit=2000)
        os.write(spool.fileno(), word)
        spool.readable()
        spool.close()
    assert (tmp_path / "kept").read_bytes() == b"one\ntwo\n"
    (tmp_path / "d").mkdir()
    with pytest.raises(HostError, match="can't open"):
        Spool(fifos.open_one(tmp_path / "log"), tmp_path / "d", limit=2000)
