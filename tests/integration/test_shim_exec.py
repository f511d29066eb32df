"""Execs through containerd's shim for runc: the caller's descriptors, terminals, exits, and that nothing of them outlives ``delete``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import RuntimeFailed
from bridge.host.console import ConsoleListener
from bridge.host.pipes import Collector, StdioPipes
from bridge.ports.runtime import ExecSpec, RemoteTerminal
from bridge.shimv2.container import ShimContainer
from bridge.shimv2.execs import ShimExec
from tests.integration.monitor_node import until
from tests.integration.shim_host import SHIM, ShimHost, shim_host

pytestmark = [pytest.mark.root, pytest.mark.skipif(not SHIM or not shutil.which("runc"), reason="needs containerd-shim-runc-v2, runc")]


class Scene:
    """A running container and its execs."""

    def __init__(self, host: ShimHost, container: ShimContainer) -> None:
        self.host, self.container = host, container
        self._count = 0

    def spec(self, script: str, **given: Any) -> ExecSpec:
        self._count += 1
        process: dict[str, Any] = {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        if "console" in given:
            process |= {"terminal": True, "consoleSize": {"width": 80, "height": 24}}
        return ExecSpec(f"{self._count:032x}", process, **given)

    async def run(self, script: str, *, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Exit code and both outputs, as core asks for them."""
        pipes = StdioPipes(stdin=stdin is not None, stdout=True, stderr=True)
        process: ShimExec | None = None
        try:
            far = pipes.far
            process = await self.container.exec(self.spec(script, stdin=far.get("stdin"), stdout=far["stdout"], stderr=far["stderr"]))
            pipes.close_far()
            with (
                contextlib.closing(Collector(pipes.take("stdout"), 1 << 24)) as out,
                contextlib.closing(Collector(pipes.take("stderr"), 1 << 20)) as err,
            ):
                if stdin is not None:
                    await anyio.to_thread.run_sync(_feed, pipes.take("stdin"), stdin)
                with anyio.fail_after(30):
                    code = (await process.wait()).code
                    await process.delete()
                    await out.ended.wait()
                    await err.ended.wait()
                return code, out.data, err.data
        finally:
            pipes.close()
            if process is not None:
                await process.delete()


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _feed(descriptor: int, data: bytes) -> None:
    os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as pipe:
        pipe.write(data)


@contextlib.asynccontextmanager
async def staged(root: Path) -> AsyncIterator[Scene]:
    """No fixture: one task enters and leaves a handler."""
    async with shim_host(root) as host, host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(host.container(pod, ["/bin/sleep", "1000"]))
        await container.start()
        before = len(os.listdir("/proc/self/fd"))
        yield Scene(host, container)
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert not list(container._spec.bundle.glob("exec-*"))
        await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_outputs_exits_and_input(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        assert await scene.run("echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
        assert await scene.run("kill -9 $$") == (137, b"", b"")
        assert await scene.run("cat; echo end >&2", stdin=b"x" * 300_000) == (0, b"x" * 300_000, b"end\n")
        assert await scene.run("head -c 3000000 /dev/zero") == (0, bytes(3_000_000), b"")
        assert (await scene.run("ulimit -a >/dev/null; echo $$"))[0] == 0
        with pytest.raises(RuntimeFailed, match="Start failed"):
            await scene.container.exec(ExecSpec("f" * 32, {"args": ["/bin/nope"], "cwd": "/", "env": []}))


async def test_one_without_stdio(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        process = await scene.container.exec(scene.spec("echo nowhere; exit 3"))
        assert process.pid > 1
        with anyio.fail_after(30):
            assert (await process.wait()).code == 3
        for _ in range(2):
            await process.delete()
        await process.kill(signal.SIGTERM)


async def test_a_terminal_with_a_size(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        listener = ConsoleListener(scene.host.root / "console")
        process = await scene.container.exec(scene.spec("stty size; read x; stty size; echo got $x; exit 5", console=listener.path))
        master = listener.take_master()
        listener.close()
        assert isinstance(process, RemoteTerminal)
        said = await _read(master, b"\n")
        assert said.startswith(b"24 80")
        await process.resize(132, 43)
        os.write(master, b"words\n")
        with anyio.fail_after(30):
            assert (await process.wait()).code == 5
        assert b"43 132\r\ngot words\r\n" in await _read(master, None)
        os.close(master)
        await process.delete()
        await process.resize(1, 1)


async def _read(descriptor: int, until_: bytes | None) -> bytes:
    """What comes until ``until_`` is there, or the end."""
    said = b""
    with anyio.fail_after(30):
        while until_ is None or until_ not in said:
            try:
                data = os.read(descriptor, 4096)
            except BlockingIOError:
                await anyio.wait_readable(descriptor)
                continue
            if not data:
                break
            said += data
    return said


async def test_delete_ends_what_it_forked_wherever_that_went(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        mark = f"7007.{time.time_ns() % 10**9}"
        for script in (f"setsid sleep {mark} & exit 0", f"(setsid sleep {mark} </dev/null >/dev/null 2>&1 &) ; sleep 1000"):
            process = await scene.container.exec(scene.spec(script))
            await until(lambda: _sleeping(mark))
            await process.delete()
            assert not _sleeping(mark)


def _sleeping(mark: str) -> bool:
    word = mark.encode()
    return any(word in _cmdline(int(entry)).split(b"\0") for entry in os.listdir("/proc") if entry.isdigit())


async def test_output_that_a_child_keeps_open_does_not_hold_the_exit(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        began = time.monotonic()
        code, out, _ = await scene.run("setsid sleep 1000 & echo started")
        assert (code, out) == (0, b"started\n")
        assert time.monotonic() - began < 30


async def test_a_cancelled_exec_leaves_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        mark = f"7008.{time.time_ns() % 10**9}"
        for step in range(8):
            with anyio.move_on_after(0.01 * step) as scope:
                process = await scene.container.exec(scene.spec(f"exec sleep {mark}"))
            if not scope.cancelled_caught:
                with anyio.move_on_after(0.001):
                    await process.delete()
                await process.delete()
            assert not _sleeping(mark)
