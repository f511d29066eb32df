from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from bridge.host.held_threads import unless_held


def never() -> None:
    raise AssertionError("it was not late")


async def test_work_that_ends_has_ended() -> None:
    done: list[int] = []
    assert await unless_held(lambda: done.append(threading.get_ident()), 20, never)
    assert done not in ([], [threading.get_ident()]), "in a thread of its own"


async def test_what_it_raises_is_raised() -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await unless_held(fail, 20, never)


async def test_a_thread_that_is_held_is_left_and_told_of_when_it_comes_back() -> None:
    free, late = threading.Event(), anyio.Event()

    def work() -> None:
        free.wait(60)

    assert not await unless_held(work, 0.05, late.set)
    await anyio.wait_all_tasks_blocked()
    assert not late.is_set()
    free.set()
    with anyio.fail_after(20):
        await late.wait()


@pytest.mark.parametrize("ends", [True, False])
async def test_cancellation_waits_for_the_end_or_for_being_held(ends: bool) -> None:
    began, free, late = threading.Event(), threading.Event(), anyio.Event()

    def work() -> None:
        began.set()
        free.wait(60)

    async def wait() -> None:
        await unless_held(work, 60 if ends else 0.2, late.set)

    task = asyncio.ensure_future(wait())
    while not began.is_set():
        await anyio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    if ends:
        free.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    free.set()
    if not ends:
        with anyio.fail_after(20):
            await late.wait()
