"""A container whose monitor was lost a moment ago: its successor is told to hold the stdio by whoever comes first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from bridge.aio import Supervisor
from bridge.errors import IllegalTransition, MonitorGone, NotFound
from bridge.host.cgroup_paths import CgroupDriver
from bridge.ports.host import HostContext
from bridge.ports.runtime import ContainerIO, ContainerSpec, ExitStatus
from bridge.shimv2.container import ShimContainer
from bridge.shimv2.runtime import ShimRuntime, ShimSettings
from bridge.shimv2.sandbox import ShimSandbox
from bridge.shimv2.verbs import ShimBinary

IDENT = "ef" * 32


class Successor:
    """A monitor that knows of a container what it was told since it began."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._held: set[str] = set()
        self.away = 0

    def here(self) -> Successor:
        """Itself, once it has been asked for ``away`` times."""
        if self.away:
            self.away -= 1
            raise MonitorGone("it died")
        return self

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        self.asked.append("hold")
        self._held.add(task_id)

    async def reopen_log(self, task_id: str) -> None:
        self._known("reopen", task_id)

    async def attach(self, task_id: str, *, attached: Callable[[], None], **_fds: int | None) -> None:
        attached()
        self._known("attach", task_id)

    def _known(self, what: str, task_id: str) -> None:
        self.asked.append(what)
        if task_id not in self._held:
            raise NotFound(f"the monitor has no task {task_id}")


@asynccontextmanager
async def running(root: Path, monitor: Successor, ended: ExitStatus | None = None) -> AsyncIterator[ShimContainer]:
    bundle = root / IDENT
    (bundle / "io").mkdir(parents=True)
    binary = ShimBinary(path=root / "shim", handler="vm", namespace="n", events=root / "events", env={})
    context = HostContext(cast("Any", monitor.here), root, root, root, CgroupDriver.CGROUPFS)
    async with Supervisor("test") as tasks:
        runtime = ShimRuntime(ShimSettings(binary, root, own_cgroups=False), context, tasks)
        container = ShimContainer(runtime, cast("ShimSandbox", None), ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO()))
        container.adopt(cast("Any", object()), pid=1, ended=ended)
        yield container


async def test_a_log_is_reopened(tmp_path: Path) -> None:
    monitor = Successor()
    async with running(tmp_path, monitor) as container:
        await container.reopen_log()
    assert monitor.asked == ["reopen", "hold", "reopen"]


async def test_the_log_of_what_has_ended_is_not(tmp_path: Path) -> None:
    monitor = Successor()
    async with running(tmp_path, monitor, ExitStatus(3)) as container:
        with pytest.raises(IllegalTransition, match="has ended"):  # and not NOT_FOUND, as which a kubelet forgets a container
            await container.reopen_log()
    assert monitor.asked == ["reopen"]


@pytest.mark.parametrize("away", [0, 2])
async def test_a_client_is_attached_by_one_question(tmp_path: Path, away: int) -> None:
    """Its descriptors may be closed as soon as a monitor has them, also one that then knows no such container."""
    monitor, attached = Successor(), []
    monitor.away = away
    async with running(tmp_path, monitor) as container:
        await container.attach(stdin=None, stdout=1, stderr=None, attached=lambda: attached.append(True))
    assert (monitor.asked, attached) == (["hold", "attach"], [True])
