"""Looks at a file system that doesn't answer: the kernel holds whoever asks, and nobody else is held up."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge.aio import Supervisor
from bridge.errors import HostError, TimedOut
from bridge.host import syscalls
from bridge.host.lookups import Lookups
from tests.integration.silent_fuse import silent_mount

pytestmark = pytest.mark.root


async def _until_stuck(pid: int) -> None:
    """Uninterruptible, with the kill pending."""
    with anyio.fail_after(5):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "D":
            await anyio.sleep(0.01)


async def test_a_look_that_can_not_even_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bridge.host.lookups._KILL_SECONDS", 0.1)
    dead = str(tmp_path / "dead")
    async with Supervisor() as supervisor:
        paths = Lookups(supervisor)
        with silent_mount(tmp_path / "dead") as mount:
            began = anyio.current_time()
            with pytest.raises(TimedOut, match=r"did not answer within 0.3 s"):
                await paths.look(dead, timeout=0.3)
            assert 0.3 <= anyio.current_time() - began < 1
            assert mount.asked.is_set()
            [child] = paths._leaving
            await _until_stuck(child.pid)
            # It is known now, and the others go on with another child.
            began = anyio.current_time()
            with pytest.raises(TimedOut, match="an earlier look at it is still stuck"):
                await paths.look(dead, timeout=10)
            assert (await paths.look(str(tmp_path), timeout=5)).path == str(tmp_path)
            assert anyio.current_time() - began < 1
            await anyio.sleep(0.15)
            assert (paths.statistics().stuck, paths.statistics().given_up) == ((dead,), 1)
            assert "is stuck in the kernel: it was killed and is given up" in caplog.text
            mount.answers.set()
            with anyio.fail_after(5):
                await child.exited.wait()
            assert (await paths.look(dead, timeout=5, keep=False)).path == dead
            assert paths.statistics().stuck == ()


async def test_others_are_not_held_up_by_a_look_that_hangs(tmp_path: Path) -> None:
    async with Supervisor() as supervisor:
        paths = Lookups(supervisor)
        with silent_mount(tmp_path / "dead") as mount:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: _times_out(paths, str(mount.target)))
                await run_sync(mount.asked.wait)
                with anyio.fail_after(0.5):  # the hanging look takes a second
                    for _ in range(20):
                        await paths.look(str(tmp_path), timeout=5)
                assert paths.statistics().busy == 1
            mount.answers.set()


async def _times_out(paths: Lookups, path: str) -> None:
    with pytest.raises(TimedOut):
        await paths.look(path, timeout=1)


async def test_a_mount_whose_server_is_gone_says_so(tmp_path: Path) -> None:
    async with Supervisor() as supervisor:
        paths = Lookups(supervisor)
        target = tmp_path / "gone"
        target.mkdir()
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        syscalls.mount("gone", target, "fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
        os.close(fd)
        try:
            with pytest.raises(HostError, match="Transport endpoint is not connected"):
                await paths.look(str(target), timeout=5)
        finally:
            syscalls.umount(target, syscalls.MNT_DETACH)


async def test_a_server_that_ends_does_not_wait_for_a_stuck_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.host.lookups._LAST_WAIT", 0.1)
    with silent_mount(tmp_path / "dead") as mount:
        with anyio.fail_after(3):
            async with Supervisor() as supervisor:
                paths = Lookups(supervisor)
                with pytest.raises(TimedOut):
                    await paths.look(str(mount.target), timeout=0.2)
                [child] = paths._leaving
        assert child.exited.is_set()  # for us; the kernel's has yet to
        pid = child.pid
        await _until_stuck(pid)
        mount.answers.set()
        os.waitpid(pid, 0)
