"""Who may run plugins when."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from bridge.network.turns import Turns


async def settle() -> None:
    for _ in range(20):
        await checkpoint()


async def hold(turn: object, entered: list[str], name: str, leave: anyio.Event) -> None:
    async with turn:  # type: ignore[attr-defined]
        entered.append(name)
        await leave.wait()


async def test_different_containers_run_side_by_side_and_one_in_a_row() -> None:
    entered: list[str] = []
    turns, leave_a, leave_b = Turns(), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(hold, turns.attachment("a"), entered, "a1", leave_a)
        group.start_soon(hold, turns.attachment("b"), entered, "b", leave_b)
        group.start_soon(hold, turns.attachment("a"), entered, "a2", leave_b)
        await settle()
        assert entered == ["a1", "b"]
        leave_a.set()
        await settle()
        assert entered == ["a1", "b", "a2"]
        leave_b.set()
    assert turns._queues == {}


async def test_a_collection_waits_for_quiet_and_holds_up_nobody_before() -> None:
    entered: list[str] = []
    turns = Turns()
    leave, leave_new, leave_gc, leave_last = anyio.Event(), anyio.Event(), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(hold, turns.attachment("a"), entered, "a", leave)
        await settle()
        group.start_soon(hold, turns.collection(), entered, "gc", leave_gc)
        await settle()
        group.start_soon(hold, turns.attachment("b"), entered, "b", leave_new)
        await settle()
        assert entered == ["a", "b"]
        leave.set()
        await settle()
        assert entered == ["a", "b"]
        leave_new.set()
        await settle()
        assert entered == ["a", "b", "gc"]
        group.start_soon(hold, turns.attachment("c"), entered, "c", leave_last)
        group.start_soon(hold, turns.collection(), entered, "gc2", leave_last)
        await settle()
        assert entered == ["a", "b", "gc"]
        leave_gc.set()
        await settle()
        leave_last.set()
    assert sorted(entered[3:]) == ["c", "gc2"]


@pytest.mark.parametrize("waiter", ["attachment", "collection"])
async def test_a_cancelled_waiter_leaves_nothing(waiter: str) -> None:
    entered: list[str] = []
    turns, leave, never = Turns(), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as outer:
        outer.start_soon(hold, turns.attachment("a"), entered, "a", leave)
        await settle()
        async with anyio.create_task_group() as inner:
            turn = turns.attachment("a") if waiter == "attachment" else turns.collection()
            inner.start_soon(hold, turn, entered, waiter, never)
            await settle()
            inner.cancel_scope.cancel()
        leave.set()
    assert entered == ["a"]
    async with turns.collection():
        pass
    async with turns.attachment("a"):
        pass
    assert turns._queues == {}
