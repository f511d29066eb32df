"""When rounds come, on a clock that jumps to the next thing that is due."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine

import anyio
import anyio.lowlevel
import pytest

from bridge.core.pace import Pace, SamplerSettings

Story = Callable[[], Coroutine[None, None, None]]


class _Jump(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class World:
    """One pace, and when its rounds and rests began; a round takes ``takes`` seconds."""

    def __init__(self, takes: float = 0.0) -> None:
        self.pace = Pace(SamplerSettings(period=10, idle=60))
        self.rounds: list[float] = []
        self.rests: list[float] = []
        self._takes = takes

    async def _work(self) -> None:
        self.rounds.append(round(anyio.current_time(), 2))
        await anyio.sleep(self._takes)

    async def _rest(self) -> None:
        self.rests.append(round(anyio.current_time()))
        await anyio.lowlevel.checkpoint()

    def play(self, story: Callable[[], Coroutine[None, None, object]]) -> None:
        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.pace.keep, self._work, self._rest)
                await story()
                group.cancel_scope.cancel()

        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(main())


def test_nobody_asks_and_nothing_is_read() -> None:
    world = World()
    world.play(lambda: anyio.sleep(1000))
    assert (world.rounds, world.rests) == ([], [0])


def test_one_question_brings_a_look_soon_one_a_period_and_then_rest() -> None:
    world = World()

    async def story() -> None:
        await anyio.sleep(100)
        world.pace.asked()
        await anyio.sleep(1000)

    world.play(story)
    assert world.rounds == [100.5, 110.2, 119.9, 129.6, 139.3, 149.0, 158.7]
    assert world.rests == [0, 160]


def test_a_kubelet_gets_what_was_read_within_the_period() -> None:
    world = World(takes=0.2)
    ages = []

    async def story() -> None:
        await anyio.sleep(5)
        for _ in range(30):
            for _ in range(3):  # containers, pods, metrics
                world.pace.asked()
                await anyio.sleep(0.03)
            await anyio.sleep(9.96)
            ages.append(anyio.current_time() - world.rounds[-1])

    world.play(story)
    assert max(ages) < 10
    assert len(world.rounds) == 30, "one a question"


@pytest.mark.parametrize("distance", [3.0, 7.0, 9.0, 11.0, 15.0, 29.0])
def test_another_rhythm_costs_a_round_a_question_and_one_a_period(distance: float) -> None:
    world = World()

    async def story() -> None:
        for _ in range(30):
            world.pace.asked()
            await anyio.sleep(distance)
            assert anyio.current_time() - world.rounds[-1] < 10

    world.play(story)
    assert len(world.rounds) <= 30 * (1 + distance // 9.7)


@pytest.mark.parametrize("distance", [0.001, 0.1, 0.4])
def test_who_asks_without_end_causes_a_round_a_second(distance: float) -> None:
    world = World()

    async def story() -> None:
        for _ in range(round(20 / distance)):
            world.pace.asked()
            await anyio.sleep(distance)

    world.play(story)
    assert 19 <= len(world.rounds) <= 21


def test_who_asks_every_second_gets_a_new_look_each_time() -> None:
    world = World(takes=0.3)
    seen = []

    async def story() -> None:
        for _ in range(20):
            world.pace.asked()
            await anyio.sleep(1)
            seen.append(world.rounds[-1])

    world.play(story)
    assert len(set(seen)) == 20


def test_a_question_while_asleep_wakes() -> None:
    world = World()

    async def story() -> None:
        world.pace.asked()
        await anyio.sleep(500)
        assert world.pace.asleep
        world.rounds.clear()
        world.pace.asked()
        assert not world.pace.asleep
        await anyio.sleep(1)

    world.play(story)
    assert world.rounds == [500.5]
