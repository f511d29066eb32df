"""A container whose monitor was lost a moment ago: its successor is told to hold the stdio by whoever comes first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from bridge.aio import Supervisor
from bridge.errors import IllegalTransition, NotFound
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

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        self.asked.append("hold")
        self._held.add(task_id)

    async def reopen_log(self, task_id: str) -> None:
        self._known("reopen", task_id)

    async def attach(self, task_id: str, *, attached: Callable[[], None], **_fds: int | None) -> None:
        self._known("attach", task_id)
        attached()

    def _known(self, what: str, task_id: str) -> None:
        self.asked.append(what)
        if task_id not in self._held:
            raise NotFound(f"the monitor has no task {task_id}")


@pytest.mark.parametrize("ended", [None, ExitStatus(3)])
@pytest.mark.parametrize("what", ["reopen", "attach"])
async def test_a_monitor_that_has_just_begun_is_told_of_what_runs(tmp_path: Path, what: str, ended: ExitStatus | None) -> None:
    bundle = tmp_path / IDENT
    (bundle / "io").mkdir(parents=True)
    binary = ShimBinary(path=tmp_path / "shim", handler="vm", namespace="n", events=tmp_path / "events", env={})
    monitor, attached = Successor(), []
    context = HostContext(cast("Any", lambda: monitor), tmp_path, tmp_path, tmp_path, CgroupDriver.CGROUPFS)
    async with Supervisor("test") as tasks:
        runtime = ShimRuntime(ShimSettings(binary, tmp_path, own_cgroups=False), context, tasks)
        container = ShimContainer(runtime, cast("ShimSandbox", None), ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO()))
        container.adopt(cast("Any", object()), pid=1, ended=ended)

        async def ask() -> None:
            if what == "reopen":
                await container.reopen_log()
            else:
                await container.attach(stdin=None, stdout=1, stderr=None, attached=lambda: attached.append(True))

        if ended is None:
            await ask()
            assert monitor.asked == [what, "hold", what]
            assert attached == ([True] if what == "attach" else [])
            return
        with pytest.raises(IllegalTransition, match="has ended"):  # and not NOT_FOUND, as which a kubelet forgets a container
            await ask()
        assert monitor.asked == [what]
