"""Exits reach whoever watches, also when the child was reaped before anyone did; strays leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator

import pytest

from bridge.monitor.reaper import Reaper, Relation, raw_status
from bridge.ports.runtime import ExitStatus


def spawn(script: str) -> int:
    child = subprocess.Popen(["sh", "-c", script])
    child.returncode = 0
    return child.pid


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.stop()


async def until_reaped(pid: int) -> None:
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.001)


async def test_exit_code_and_time(reaper: Reaper) -> None:
    status = await reaper.exit_of(spawn("exit 3"))
    assert (status.code, status.signal) == (3, None)
    assert status.at_ns > 1_600_000_000_000_000_000


async def test_signal_is_128_more(reaper: Reaper) -> None:
    status = await reaper.exit_of(spawn("kill -KILL $$"))
    assert (status.code, status.signal) == (137, 9)


async def test_a_child_reaped_before_it_was_watched_is_reported_under_hold(reaper: Reaper) -> None:
    with reaper.hold():
        pid = spawn("exit 5")
        await until_reaped(pid)
        seen: list[ExitStatus] = []
        assert reaper.watch(pid, seen.append) is Relation.REAPED
        assert seen == [], "never from within watch"
        await asyncio.sleep(0)
        assert [status.code for status in seen] == [5]


async def test_without_hold_nothing_is_kept(reaper: Reaper) -> None:
    pid = spawn("exit 5")
    await until_reaped(pid)
    assert reaper.watch(pid, lambda _: None) is Relation.STRANGER


async def test_kept_exits_go_with_the_last_hold(reaper: Reaper) -> None:
    with reaper.hold():
        with reaper.hold():
            pid = spawn("exit 5")
            await until_reaped(pid)
        assert pid in reaper._unclaimed
    assert not reaper._unclaimed


async def test_a_live_child_wins_over_a_kept_exit_of_the_same_number(reaper: Reaper) -> None:
    with reaper.hold():
        pid = spawn("exec sleep 60")
        reaper._unclaimed[pid] = ExitStatus(99)
        ended = reaper.exit_of(pid)
        os.kill(pid, signal.SIGTERM)
        assert (await ended).signal == signal.SIGTERM
        assert pid not in reaper._unclaimed


async def test_a_zombie_from_before_the_start_is_reaped_with_its_code() -> None:
    reaper = Reaper()
    pid = spawn("exit 4")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended = reaper.exit_of(pid)
    reaper.start()
    try:
        assert (await ended).code == 4
    finally:
        reaper.stop()


async def test_an_abandoned_wait_still_reaps(reaper: Reaper) -> None:
    pid = spawn("exec sleep 60")
    reaper.exit_of(pid).cancel()
    os.kill(pid, signal.SIGKILL)
    await until_reaped(pid)


async def test_many_children_at_once(reaper: Reaper) -> None:
    pids = [spawn(f"exit {n % 200}") for n in range(300)]
    statuses = await asyncio.gather(*map(reaper.exit_of, pids))
    assert [status.code for status in statuses] == [n % 200 for n in range(300)]


async def test_no_child_is_a_stranger(reaper: Reaper) -> None:
    assert reaper.watch(1, lambda _: None) is Relation.STRANGER
    assert not reaper.is_child(1)


def test_wait_status_words() -> None:
    assert raw_status(0x0700, 1) == ExitStatus(7, at_ns=1)
    assert raw_status(9, 1) == ExitStatus(137, signal=9, at_ns=1)
    assert raw_status(0x8B, 1) == ExitStatus(139, signal=11, at_ns=1)
