"""What the server keeps for the next monitor: by events, given away whole, and nothing left open."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from bridge.errors import AlreadyExists, HostError, MonitorGone
from bridge.monitor.keeping import Keeper
from bridge.monitor.protocol import Frame


class Monitor:
    """Takes containers over; ``answers`` are raised first."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.taken: list[tuple[str, int, int, Mapping[str, Any], int]] = []

    async def adopt(
        self, task_id: str, pid: int, start_ticks: int, *, held: Mapping[str, Any] | None = None, fds: Sequence[int] = ()
    ) -> None:
        if self.answers:
            raise self.answers.pop(0)
        assert held is not None
        self.taken.append((task_id, pid, start_ticks, held, len(fds)))


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    before = len(os.listdir("/proc/self/fd"))
    made = Keeper()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def held(task: str, *names: str) -> Frame:
    message = {"event": "held", "task": task, "pid": 7, "start_ticks": 9, "terminal": False, "log_path": "/l", "fds": list(names)}
    return Frame(message, tuple(os.open(os.devnull, os.O_RDONLY) for _ in names))


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_it_gives_what_it_was_told(keeper: Keeper) -> None:
    keeper.on_event(held("a", "stdout", "stderr", "stdin"))
    keeper.on_event(held("b", "stdout"))
    monitor = Monitor()
    await keeper.hand_over(monitor)
    facts = {"terminal": False, "log_path": "/l"}
    assert monitor.taken == [
        ("a", 7, 9, {**facts, "fds": ["stdout", "stderr", "stdin"]}, 3),
        ("b", 7, 9, {**facts, "fds": ["stdout"]}, 1),
    ]
    assert len(keeper) == 2, "the new monitor may die as well"


async def test_events_let_go(keeper: Keeper) -> None:
    before = opened()
    keeper.on_event(held("a", "stdout", "stdin"))
    keeper.on_event(Frame({"event": "stdin_closed", "task": "a"}))
    keeper.on_event(Frame({"event": "stdin_closed", "task": "unknown"}))
    assert opened() == before + 1
    keeper.on_event(held("a", "stdout", "stderr"))  # told again, after a lost connection
    assert opened() == before + 2
    keeper.on_event(Frame({"event": "exit", "task": "a"}))
    assert (opened(), len(keeper)) == (before, 0)
    keeper.on_event(Frame({"event": "of the future", "task": "a"}, held("x", "stdout").fds))
    assert opened() == before


async def test_what_one_container_meets_is_not_the_others(keeper: Keeper) -> None:
    for task in ("a", "b", "c"):
        keeper.on_event(held(task, "stdout"))
    monitor = Monitor(AlreadyExists("a"), HostError("b"))
    await keeper.hand_over(monitor)
    assert [taken[0] for taken in monitor.taken] == ["c"]


async def test_a_monitor_that_dies_meanwhile(keeper: Keeper) -> None:
    keeper.on_event(held("a", "stdout"))
    with pytest.raises(MonitorGone):
        await keeper.hand_over(Monitor(MonitorGone("lost")))
    assert len(keeper) == 1
