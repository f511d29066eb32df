"""A container's stdio on plain pipes: logging, drains that are bounded, clients that are slow, late or gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.errors import InvalidRequest, LimitExceeded
from bridge.monitor import attach
from bridge.monitor.container import ContainerStdio
from bridge.monitor.logs import Clock, LogFile
from bridge.monitor.parameters import Descriptors
from bridge.monitor.pipes import BUFFER_HIGH


class Far:
    """The container's ends of its pipes."""

    def __init__(self, path: Path, *, stdin: bool = False, stdin_once: bool = False) -> None:
        out, self.stdout = os.pipe()
        err, self.stderr = os.pipe()
        self.stdin, near = os.pipe() if stdin else (-1, None)
        self.log = path
        self.stdio = ContainerStdio(LogFile(path, Clock()), {"stdout": out, "stderr": err}, near, terminal=False, stdin_once=stdin_once)

    def hang_up(self) -> None:
        for name in ("stdout", "stderr", "stdin"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def texts(self) -> list[bytes]:
        return [line.split(b" ", 3)[3] for line in self.log.read_bytes().splitlines()]


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    before = set(os.listdir("/proc/self/fd"))
    far = Far(tmp_path / "log", stdin=True)
    yield far
    far.hang_up()
    far.stdio.close()
    assert set(os.listdir("/proc/self/fd")) == before


class Viewer:
    """An attached client with its near end."""

    def __init__(self, far: Far, *, stdin: bool = False) -> None:
        self.output, theirs = os.pipe()
        given, self.input = os.pipe() if stdin else (None, -1)
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.session = far.stdio.hub.attach(Descriptors(stdin=given, stdout=theirs), self.ended.set_result)

    def read(self) -> bytes:
        return os.read(self.output, 1 << 20)

    def close(self) -> None:
        self.session.end()
        for fd in (self.output, self.input):
            if fd >= 0:
                os.close(fd)


async def turns(count: int = 5) -> None:
    """Let the loop see what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_output_is_logged_and_the_rest_at_the_end(far: Far) -> None:
    os.write(far.stdout, b"one\ntw")
    await turns()
    assert far.texts() == [b"one"]
    os.write(far.stderr, b"err\n")
    os.write(far.stdout, b"o\nrest")
    await turns()
    far.hang_up()
    await turns()
    assert far.texts() in ([b"one", b"two", b"err", b"rest"], [b"one", b"err", b"two", b"rest"])


async def test_drain_logs_what_is_there_before_it_reports(far: Far) -> None:
    os.write(far.stdout, b"last words\nunfinished")
    reports: list[list[bytes]] = []
    far.stdio.drain(lambda: reports.append(far.texts()))
    assert reports == [[b"last words", b"unfinished"]]


async def test_drain_is_bounded_when_someone_else_keeps_writing(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def endless(fd: int) -> bytes:
        reads.append(fd)
        return b"x" * 1000 + b"\n"

    monkeypatch.setattr("bridge.monitor.container._read", endless)
    done: list[bool] = []
    far.stdio.drain(lambda: done.append(True))
    assert done == [True]
    assert len(reads) < 200


async def test_a_viewer_sees_what_comes_and_ends_with_the_output(far: Far) -> None:
    os.write(far.stdout, b"before\n")
    await turns()
    viewer = Viewer(far)
    os.write(far.stdout, b"after")
    await turns()
    assert viewer.read() == b"after"
    far.hang_up()
    assert await viewer.ended is None
    assert viewer.read() == b""
    viewer.close()


async def test_a_viewer_that_does_not_read_holds_the_output_and_then_is_dropped(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "STALL_SECONDS", 0.2)
    viewer, other = Viewer(far), Viewer(far)
    os.set_blocking(far.stdout, False)
    os.set_blocking(other.output, False)
    written = 0

    async def write() -> None:
        nonlocal written
        while written < 4 << 20:
            try:
                written += os.write(far.stdout, b"x" * 65535 + b"\n")
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def read_other() -> None:
        while True:
            try:
                os.read(other.output, 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)

    writer, reader = asyncio.ensure_future(write()), asyncio.ensure_future(read_other())
    await asyncio.sleep(0.1)
    held_at = written
    assert held_at < BUFFER_HIGH + 5 * 65536, "held: a pipe to the viewer, its buffer, a read and the container's pipe"
    assert isinstance(await viewer.ended, LimitExceeded)
    await asyncio.wait_for(writer, 10)
    assert not other.ended.done(), "the one who reads stays"
    reader.cancel()
    viewer.close()
    other.close()


async def test_a_viewer_that_catches_up_gets_everything(far: Far) -> None:
    viewer = Viewer(far)
    data = os.urandom(1 << 20)

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(far.stdout, view) :]

    def read() -> bytes:
        found = b""
        while len(found) < len(data):
            found += viewer.read()
        return found

    writing = asyncio.get_running_loop().run_in_executor(None, write)
    await asyncio.sleep(0.05)
    assert not writing.done(), "held"
    assert await asyncio.to_thread(read) == data
    await writing
    assert not viewer.ended.done()
    viewer.close()


async def test_a_viewer_that_has_gone_is_noticed_and_costs_nothing(far: Far) -> None:
    viewer = Viewer(far)
    os.close(viewer.output)
    viewer.output = -1
    os.write(far.stdout, b"x\n")
    assert await viewer.ended is None
    os.write(far.stdout, b"y\n")
    await turns()
    assert far.texts() == [b"x", b"y"]
    viewer.close()


async def test_stdin_of_two_viewers_and_close_stdin(far: Far) -> None:
    one, two = Viewer(far, stdin=True), Viewer(far, stdin=True)
    os.write(one.input, b"1")
    await turns()
    os.write(two.input, b"2")
    await turns()
    assert os.read(far.stdin, 10) == b"12"
    one.close()
    await turns()
    stdin = far.stdio.hub.stdin
    assert stdin is not None
    assert not stdin.closed
    stdin.finish()
    assert os.read(far.stdin, 10) == b""
    two.close()


async def test_stdin_that_nobody_reads_is_bounded(far: Far) -> None:
    viewer = Viewer(far, stdin=True)
    os.set_blocking(viewer.input, False)
    sent = 0
    for _ in range(200):
        try:
            sent += os.write(viewer.input, b"x" * 4096)
        except BlockingIOError:
            await turns(2)
    assert 65536 < sent <= 5 * 65536
    got = 0
    os.set_blocking(far.stdin, False)
    while got < sent:
        try:
            got += len(os.read(far.stdin, 65536))
        except BlockingIOError:
            await turns(2)
    viewer.close()


async def test_stdin_closed_by_the_container_ends_the_viewers_input(far: Far) -> None:
    viewer = Viewer(far, stdin=True)
    os.close(far.stdin)
    far.stdin = -1
    os.write(viewer.input, b"x")
    await turns(10)
    with pytest.raises(BrokenPipeError):
        os.write(viewer.input, b"y")
    assert not viewer.ended.done(), "it still sees output"
    viewer.close()


async def test_files_can_not_be_attached(far: Far) -> None:
    with open(os.devnull, "rb") as null, pytest.raises(InvalidRequest, match="stdin: must be"):
        far.stdio.hub.attach(Descriptors(stdin=null.fileno()), lambda _: None)


async def test_stdin_once_closes_with_its_client(tmp_path: Path) -> None:
    far = Far(tmp_path / "log", stdin=True, stdin_once=True)
    viewer = Viewer(far, stdin=True)
    os.write(viewer.input, b"all")
    await turns()
    viewer.close()
    assert os.read(far.stdin, 10) == b"all"
    assert os.read(far.stdin, 10) == b""
    far.hang_up()
    far.stdio.close()
