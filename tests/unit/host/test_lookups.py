"""Looking at paths through a child: what is found, what is made, what fails, and what becomes of the children."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import BridgeError, HostError, LimitExceeded, TimedOut, Unavailable
from bridge.host import lookup_child, lookups
from bridge.host.attendant import Attendant
from bridge.host.lookups import Lookups


@contextlib.asynccontextmanager
async def looking() -> AsyncIterator[Lookups]:
    async with Supervisor() as supervisor:
        yield Lookups(supervisor)


async def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("hop")
    (tmp_path / "hop").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "sock"))
    server.close()
    async with looking() as paths:
        for name, kind in (
            ("file", stat.S_IFREG),
            ("link", stat.S_IFREG),
            ("fifo", stat.S_IFIFO),
            ("sock", stat.S_IFSOCK),
            (".", stat.S_IFDIR),
        ):
            found = await paths.look(str(tmp_path / name), timeout=30)
            assert stat.S_IFMT(found.mode) == kind, name
            assert found.fd is None
        assert (await paths.look(str(tmp_path / "link"), timeout=30)).path == str(tmp_path / "file")
        assert stat.S_ISCHR((await paths.look("/dev/null", timeout=30)).mode)
        assert paths.statistics() == lookups.Statistics(free=1, busy=0, stuck=(), given_up=0)


async def test_a_descriptor_comes_along(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    async with looking() as paths:
        found = await paths.look(str(tmp_path / "file"), timeout=30, keep=True)
        assert found.fd is not None
        try:
            assert Path(f"/proc/self/fd/{found.fd}").read_text() == "content"
            assert not os.get_inheritable(found.fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.read(found.fd, 1)  # O_PATH: it names the file and opens nothing
        finally:
            os.close(found.fd)


async def test_what_is_missing_is_made_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    async with looking() as paths:
        with pytest.raises(HostError) as caught:
            await paths.look(str(path), timeout=30)
        assert caught.value.errno == errno.ENOENT
        assert not (tmp_path / "a").exists()
        assert (await paths.look(f"{path}/", timeout=30, make=True)).path == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("name", "code"), [("file/x", errno.ENOTDIR), ("loop", errno.ELOOP), ("dangling", errno.EEXIST), ("x" * 300, errno.ENAMETOOLONG)]
)
async def test_what_can_not_be_made(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    async with looking() as paths:
        with pytest.raises(HostError) as caught:
            await paths.look(str(tmp_path / name), timeout=30, make=True)
        assert caught.value.errno == code
        assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("path", ["/a\0b", "/" + "x/" * 3000])
async def test_what_can_not_be_a_path(path: str) -> None:
    async with looking() as paths:
        with pytest.raises(HostError, match="can't be a path"):
            await paths.look(path, timeout=30, make=True)
        assert paths.statistics().free == 0


async def test_any_bytes_can_be_a_name(tmp_path: Path) -> None:
    for raw in (b"a b\nc", b"\xff\xfe", b"x (deleted)"):
        name = os.fsdecode(raw)
        (tmp_path / name).mkdir()
        async with looking() as paths:
            assert (await paths.look(str(tmp_path / name), timeout=30)).path == str(tmp_path / name)


async def test_many_at_once_share_few_children(tmp_path: Path) -> None:
    async with looking() as paths:
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(lambda: paths.look(str(tmp_path), timeout=30))
        assert paths.statistics().free <= lookups.SPARE_CHILDREN
        assert paths.statistics().busy == 0


async def test_idle_children_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_IDLE_SECONDS", 0.05)
    async with looking() as paths:
        await paths.look(str(tmp_path), timeout=30)
        [child] = paths._free
        with anyio.fail_after(30):
            await child.exited.wait()
        assert paths.statistics().free == 0
        assert (await paths.look(str(tmp_path), timeout=30)).path == str(tmp_path)


class Deaf:
    """Stands for a path that doesn't answer: the child is stopped, so it hears nothing; SIGKILL still ends it."""

    def __init__(self, paths: Lookups) -> None:
        [child] = paths._free
        os.kill(child.pid, signal.SIGSTOP)
        self.child = child


async def test_a_look_that_takes_too_long(tmp_path: Path) -> None:
    async with looking() as paths:
        await paths.look("/", timeout=30)
        deaf = Deaf(paths)
        with pytest.raises(TimedOut, match=rf"^{tmp_path} did not answer within 0.05 s"):
            await paths.look(str(tmp_path), timeout=0.05)
        with anyio.fail_after(30):
            await deaf.child.exited.wait()
        assert (await paths.look(str(tmp_path), timeout=30)).path == str(tmp_path)
        assert paths.statistics() == lookups.Statistics(free=1, busy=0, stuck=(), given_up=0)


async def test_a_cancelled_look_leaves_nothing(tmp_path: Path) -> None:
    async with looking() as paths:
        await paths.look("/", timeout=30)
        deaf = Deaf(paths)
        with anyio.move_on_after(0.05) as scope:
            await paths.look(str(tmp_path), timeout=60)
        assert scope.cancelled_caught
        with anyio.fail_after(30):
            await deaf.child.exited.wait()
        assert paths.statistics().busy == 0


async def test_a_child_that_dies_is_replaced(tmp_path: Path) -> None:
    async with looking() as paths:
        await paths.look("/", timeout=30)
        [child] = paths._free
        os.kill(child.pid, signal.SIGKILL)
        await child.exited.wait()
        assert (await paths.look(str(tmp_path), timeout=30)).path == str(tmp_path)
        deaf = Deaf(paths)
        async with anyio.create_task_group() as group:
            group.start_soon(_is_lost, paths, str(tmp_path))
            while not paths.statistics().busy:
                await anyio.sleep(0)
            os.kill(deaf.child.pid, signal.SIGKILL)
        assert (await paths.look(str(tmp_path), timeout=30)).path == str(tmp_path)


async def _is_lost(paths: Lookups, path: str) -> None:
    with pytest.raises(BridgeError, match=rf"the process that looks at {path} (was lost|ended early)"):
        await paths.look(path, timeout=30)


async def test_the_supervisors_end_is_theirs(tmp_path: Path) -> None:
    async with looking() as paths:
        await paths.look(str(tmp_path), timeout=30)
        [child] = paths._free
    assert child.exited.is_set()
    with pytest.raises(Unavailable):
        await paths.look(str(tmp_path), timeout=30)


def test_the_child_answers_until_the_other_side_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    saved, mask = os.dup(0), os.umask(0o022)
    os.dup2(theirs.fileno(), 0)
    try:
        thread = threading.Thread(target=lookup_child.main)
        thread.start()
        ours.send(bytes([lookup_child.MAKE]) + os.fsencode(tmp_path / "new"))
        assert ours.recv(8192).split(b" ")[0] == b"0"
        assert (tmp_path / "new").is_dir()
        ours.send(b"\0" + os.fsencode(tmp_path / "absent"))
        assert ours.recv(8192) == b"%d 0 " % errno.ENOENT
        ours.close()
        theirs.close()
        thread.join(5)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.umask(mask)
    assert not thread.is_alive()


async def test_too_many_stuck_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_MAX_STUCK", 1)
    async with looking() as paths:
        child = Attendant(["/bin/sleep", "1000"])
        paths._leaving[child] = "/dead"
        with pytest.raises(TimedOut, match=r"^/dead does not answer: an earlier look"):
            await paths.look("/dead", timeout=30)
        with pytest.raises(LimitExceeded, match="stuck in the kernel"):
            await paths.look(str(tmp_path), timeout=30)
        child.kill()
        await child.exited.wait()
        assert (await paths.look(str(tmp_path), timeout=30)).path == str(tmp_path)


async def test_an_attendant_that_can_not_be_run() -> None:
    with pytest.raises(HostError, match="can't run /nonexistent"):
        Attendant(["/nonexistent"])
