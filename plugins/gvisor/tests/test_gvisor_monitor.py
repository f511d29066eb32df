"""A container whose monitor was lost a moment ago: its successor is given it by whoever comes first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bridge_gvisor.container import GvisorContainer

from bridge.errors import IllegalTransition, NotFound
from bridge.ports.runtime import ContainerIO, ContainerSpec


class Successor:
    """A monitor that knows a container once it was given it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def tasks(self, _only: str = "") -> list[str]:
        return [word for word in self.asked if word == "adopt"]

    async def resize(self, _task_id: str, width: int, height: int) -> None:
        await self.reopen_log(f"{width}x{height}")

    async def attach(self, _task_id: str, **_streams: Any) -> None:
        self.asked.append("attach")

    async def adopt(self, _task_id: str, _pid: int, _ticks: int, **_waiter: Any) -> None:
        self.asked.append("adopt")

    async def reopen_log(self, _task_id: str) -> None:
        self.asked.append("reopen")
        if "adopt" not in self.asked:
            raise NotFound("the monitor has no task c")


class Host:
    """What a container asks of its handler's host for that."""

    def __init__(self, monitor: Successor) -> None:
        self.runsc = SimpleNamespace(settings=SimpleNamespace(env={}), argv=lambda *_args, **_options: ["runsc"])
        self.monitor = monitor

    async def lasting(self, ask: Callable[[Any], Awaitable[None]], *, patience: float) -> None:
        assert patience > 0
        await ask(self.monitor)

    async def end_verbs(self, _ident: str) -> None:
        """None runs."""


async def test_the_log_of_what_runs_is_reopened_by_a_monitor_that_has_just_begun() -> None:
    monitor = Successor()
    spec = ContainerSpec("c", "s", Path("/bundle"), {}, ContainerIO())
    await GvisorContainer(cast("Any", Host(monitor)), spec, pid=1, ticks=7).reopen_log()
    assert monitor.asked == ["reopen", "adopt", "reopen"]


async def test_it_is_attached_to_at_such_a_monitor_by_one_question() -> None:
    monitor = Successor()
    spec = ContainerSpec("c", "s", Path("/bundle"), {}, ContainerIO())
    running = GvisorContainer(cast("Any", Host(monitor)), spec, pid=1, ticks=7)
    await running.attach(stdin=None, stdout=None, stderr=None, attached=lambda: None)
    assert monitor.asked == ["adopt", "attach"]
    monitor.asked.clear()
    await running.resize(80, 25)
    assert monitor.asked == ["reopen", "adopt", "reopen"]


async def test_what_nobody_knows_has_ended() -> None:
    spec = ContainerSpec("c", "s", Path("/bundle"), {}, ContainerIO())
    with pytest.raises(IllegalTransition, match="has ended"):  # and not NOT_FOUND, as which a kubelet forgets a container
        await GvisorContainer(cast("Any", Host(Successor())), spec).reopen_log()
