"""run(): exit codes, output, deadlines, cancellation; never a zombie, a leaked descriptor or a surviving group."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import anyio
import pytest

from bridge.errors import HostError, TimedOut
from bridge.host import process


def _fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


async def test_gives_exit_code_and_both_outputs() -> None:
    done = await process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)
    assert done == process.Completed(3, b"out\n", b"err\n")


async def test_a_signal_is_a_negative_code() -> None:
    done = await process.run(["sh", "-c", "kill -TERM $$"], timeout=10)
    assert done.returncode == -signal.SIGTERM


async def test_large_input_goes_through_while_output_comes_back() -> None:
    data = os.urandom(1 << 20)
    done = await process.run(["cat"], input=data, timeout=10)
    assert done.stdout == data
    assert not done.truncated


async def test_input_that_nobody_reads_is_no_error() -> None:
    done = await process.run(["true"], input=b"x" * (1 << 20), timeout=10)
    assert done.returncode == 0


async def test_stdin_is_empty_without_input() -> None:
    done = await process.run(["cat"], timeout=10)
    assert done == process.Completed(0, b"", b"")


async def test_output_is_capped_and_the_writer_not_blocked() -> None:
    done = await process.run(["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"], timeout=10, max_output=1000)
    assert done.returncode == 0
    assert done.stdout == bytes(1000)
    assert done.stderr == b"end\n"
    assert done.truncated


async def test_env_cwd_and_pass_fds(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = await process.run(
            ["sh", "-c", f'echo "$GREETING $(pwd)"; echo passed > /proc/self/fd/{writer}'],
            env={"GREETING": "hi", "PATH": os.environ["PATH"]},
            cwd=tmp_path,
            timeout=10,
            pass_fds=(writer,),
        )
        assert done.stdout.decode() == f"hi {tmp_path}\n"
        assert os.read(reader, 100) == b"passed\n"
    finally:
        os.close(reader)
        os.close(writer)


async def test_what_can_not_be_started_is_a_host_error(tmp_path: Path) -> None:
    before = _fds()
    with pytest.raises(HostError, match="no-such-binary") as caught:
        await process.run(["/no-such-binary"], timeout=1)
    assert caught.value.errno == 2
    with pytest.raises(HostError):
        await process.run(["true"], cwd=tmp_path / "absent", timeout=1)
    assert _fds() == before


async def test_timeout_kills_the_whole_group_and_reaps(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    before = _children()
    start = time.monotonic()
    with pytest.raises(TimedOut, match=r"sh did not end within 0\.3 s"):
        await process.run(["sh", "-c", f"trap '' TERM; sleep 60 & echo $! $$ > {pids}; wait"], timeout=0.3)
    assert time.monotonic() - start < 20
    child, leader = map(int, pids.read_text().split())
    assert not Path(f"/proc/{leader}").exists()
    assert _children() == before
    deadline = time.monotonic() + 20
    while not _gone(child):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("native", [True, False], ids=["task.cancel", "cancel scope"])
async def test_cancellation_propagates_and_leaves_nothing(tmp_path: Path, native: bool) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    before, descriptors = _children(), _fds()
    argv = ["sh", "-c", f"echo $$ > {ready}; exec sleep 60"]

    async def opened() -> int:
        return int(await anyio.to_thread.run_sync(ready.read_text))

    if native:
        task = asyncio.ensure_future(process.run(argv, timeout=60))
        pid = await opened()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: process.run(argv, timeout=60))
            pid = await opened()
            group.cancel_scope.cancel()
    assert not Path(f"/proc/{pid}").exists()
    assert _children() == before
    assert _fds() == descriptors


async def test_a_grandchild_holding_the_pipe_does_not_hold_the_caller(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start = time.monotonic()
    done = await process.run(["sh", "-c", f"sleep 60 & echo $! > {pids}; echo done"], timeout=30)
    try:
        assert time.monotonic() - start < 20
        assert done == process.Completed(0, b"done\n", b"")
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


async def test_many_at_once_leave_no_descriptor_and_no_child() -> None:
    await process.run(["true"], timeout=10)
    before, descriptors = _children(), _fds()
    codes: list[int] = []

    async def one(code: int) -> None:
        codes.append((await process.run([sys.executable, "-S", "-c", f"raise SystemExit({code})"], timeout=30)).returncode)

    async with anyio.create_task_group() as group:
        for code in range(30):
            group.start_soon(one, code)
    assert sorted(codes) == list(range(30))
    assert _children() == before
    assert _fds() == descriptors
