"""How a streaming RPC tells of its work."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import pytest

from bridge.api.reports import reported
from bridge.errors import NotFound


async def test_an_answer_for_each_change_and_the_result_last() -> None:
    seen = 0
    step = anyio.Event()

    async def work() -> str:
        nonlocal step
        for _ in range(3):
            await step.wait()
            step = anyio.Event()
        return "done"

    def look() -> str:
        return f"at {seen}"

    answers = []
    async with aclosing(reported(work, look, str.upper, every=0.01)) as replies:
        async for reply in replies:
            answers.append(reply)
            seen += 1
            step.set()
    assert answers == ["at 0", "at 1", "at 2", "DONE"]


async def test_nothing_is_said_twice() -> None:
    looks = 0
    enough = anyio.Event()

    def look() -> str:
        nonlocal looks
        looks += 1
        if looks == 5:
            enough.set()
        return "same"

    async def work() -> str:
        await enough.wait()
        return "done"

    assert [reply async for reply in reported(work, look, str, every=0.001)] == ["same", "done"]


async def test_a_failure_comes_as_it_is() -> None:
    async def work() -> str:
        raise NotFound("no such image")

    with pytest.raises(NotFound, match="no such image"):
        _ = [reply async for reply in reported(work, str, str)]


async def test_leaving_cancels_the_work_and_waits_for_its_end() -> None:
    ended = False

    async def work() -> str:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            ended = True
        return ""

    async with aclosing(reported(work, lambda: "x", str, every=0.001)) as replies:
        assert await anext(replies) == "x"
        assert not ended
    assert ended


async def test_the_callers_cancellation_ends_the_work() -> None:
    ended = anyio.Event()

    async def work() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return ""

    with anyio.move_on_after(0.05) as scope:
        async with aclosing(reported(work, lambda: "x", str, every=0.001)) as replies:
            async for _ in replies:
                pass
    assert scope.cancelled_caught
    assert ended.is_set()
