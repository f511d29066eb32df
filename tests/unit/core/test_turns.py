from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from bridge.core.turns import Turns


class Work:
    """Jobs that take a place and keep it until they are let go; ``order`` is who got one, in turn."""

    def __init__(self, capacity: int) -> None:
        self.turns = Turns(capacity)
        self.order: list[str] = []
        self._open = anyio.Semaphore(0)
        self.most: dict[str, int] = {}
        self._now: dict[str, int] = {}

    def job(self, pod: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def work() -> None:
            async with self.turns.taken(pod):
                self.order.append(pod)
                self._now[pod] = self._now.get(pod, 0) + 1
                self.most[pod] = max(self.most.get(pod, 0), self._now[pod])
                await self._open.acquire()
                self._now[pod] -= 1

        return work

    async def finish_one(self) -> None:
        self._open.release()
        await anyio.wait_all_tasks_blocked()


async def test_one_pod_with_fifty_creations_makes_nobody_wait_for_them() -> None:
    work = Work(4)
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(work.job("greedy"))
        await anyio.wait_all_tasks_blocked()
        assert (work.turns.working, work.turns.waiting) == (2, 48), "one pod has half of the places"
        for name in "abc":
            group.start_soon(work.job(name))
        await anyio.wait_all_tasks_blocked()
        assert work.order == ["greedy", "greedy", "a", "b"]
        await work.finish_one()
        assert work.order[-1] == "c", "before the 48 that came earlier"
        for _ in range(52):
            await work.finish_one()
    assert work.order.count("greedy") == 50
    assert work.most["greedy"] == 2
    assert (work.turns.working, work.turns.waiting) == (0, 0)


async def test_pods_take_turns() -> None:
    work = Work(2)
    async with anyio.create_task_group() as group:
        for name in ("a", "a", "a", "b", "b", "c"):
            group.start_soon(work.job(name))
        await anyio.wait_all_tasks_blocked()
        for _ in range(6):
            await work.finish_one()
    assert work.order == ["a", "b", "a", "b", "c", "a"], "of pods that hold as much: who has waited longest since its last turn"


async def test_a_pod_alone_has_all_its_work_done_one_by_one() -> None:
    work = Work(1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(work.job("a"))
        await anyio.wait_all_tasks_blocked()
        assert (work.turns.working, work.turns.waiting) == (1, 2)
        for _ in range(3):
            await work.finish_one()
    assert work.order == ["a", "a", "a"]


async def test_who_is_cancelled_while_waiting_holds_nothing() -> None:
    turns = Turns(2)
    async with anyio.create_task_group() as group, turns.taken("a"):
        with anyio.CancelScope() as scope:
            group.start_soon(_cancel_when_blocked, scope)
            async with turns.taken("a"):
                pytest.fail("one pod has half of two places")
        assert turns.waiting == 0
    async with turns.taken("a"):
        assert (turns.working, turns.waiting) == (1, 0)


async def test_a_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    turns = Turns(2)
    done = []

    async def other() -> None:
        async with turns.taken("a"):
            done.append("a")

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:

                async def waiter() -> None:
                    async with turns.taken("a"):
                        done.append("cancelled")
                        await anyio.lowlevel.checkpoint()
                        done.append("went on")

                async with turns.taken("a"):
                    inner.start_soon(waiter)
                    await anyio.wait_all_tasks_blocked()
                    group.start_soon(other)
                    await anyio.wait_all_tasks_blocked()
                    assert turns.waiting == 2
                scope.cancel()  # its turn has come, and it has not run since
    assert done in (["a"], ["cancelled", "a"])
    assert (turns.working, turns.waiting) == (0, 0)


async def test_an_error_gives_the_place_back() -> None:
    turns = Turns(1)
    with pytest.raises(ValueError, match="boom"):
        async with turns.taken("a"):
            raise ValueError("boom")
    assert turns.working == 0


async def _cancel_when_blocked(scope: anyio.CancelScope) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()
