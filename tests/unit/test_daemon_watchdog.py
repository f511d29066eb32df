"""Signs of life: while the loop turns and a worker thread answers, and at no other time."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bridge.daemon_watchdog import beat
from bridge.host.service_manager import ServiceManager


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def manager(notify: socket.socket, microseconds: str = "300000", pid: int | None = None) -> ServiceManager:
    found = {"NOTIFY_SOCKET": notify.getsockname(), "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": str(pid or os.getpid())}
    return ServiceManager.of(found)


async def told(notify: socket.socket) -> bytes:
    with anyio.fail_after(20):
        await anyio.wait_readable(notify)
    return notify.recv(256)


def drain(notify: socket.socket) -> int:
    count = 0
    while True:
        try:
            notify.recv(256)
        except BlockingIOError:
            return count
        count += 1


async def test_it_says_that_it_lives_again_and_again(notify: socket.socket) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(beat, manager(notify))
        assert [await told(notify) for _ in range(4)] == [b"WATCHDOG=1"] * 4
        group.cancel_scope.cancel()


async def test_it_is_silent_while_no_worker_thread_answers(notify: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    limiter, stuck = anyio.to_thread.current_default_thread_limiter(), threading.Event()
    before, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, stuck.wait, 60)
            with anyio.fail_after(20):
                while not limiter.borrowed_tokens:
                    await anyio.sleep(0.001)
            group.start_soon(beat, manager(notify))
            with anyio.fail_after(20):
                while not any("no worker thread answers" in line for line in caplog.messages):
                    await anyio.sleep(0.01)
            assert drain(notify) == 0
            stuck.set()
            assert await told(notify) == b"WATCHDOG=1"
            group.cancel_scope.cancel()
    finally:
        stuck.set()
        limiter.total_tokens = before


async def test_it_is_silent_while_the_loop_is_held_up(notify: socket.socket) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(beat, manager(notify))
        await told(notify)
        drain(notify)
        threading.Event().wait(1.0)  # blocks the loop, over three of the manager's periods
        assert drain(notify) <= 1, "at most the one that a thread had begun to send"
        assert await told(notify) == b"WATCHDOG=1"
        group.cancel_scope.cancel()


@pytest.mark.parametrize(("microseconds", "pid"), [("", None), ("0", None), ("300000", 1)])
async def test_it_says_nothing_to_who_does_not_ask(notify: socket.socket, microseconds: str, pid: int | None) -> None:
    with anyio.fail_after(20):
        await beat(manager(notify, microseconds, pid))
    assert drain(notify) == 0
