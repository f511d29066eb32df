"""A container that had ended when its server was killed: the next server frees it, also when nobody is left who was told of the exit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from betterproto2 import Message

from bridge._proto.containerd.task.v2 import StateResponse, WaitResponse
from bridge._proto.containerd.v1.types import Status
from bridge.aio import Supervisor
from bridge.errors import NotFound
from bridge.ports.runtime import ContainerIO, ContainerSpec, ExitStatus
from bridge.shimv2.container import ShimContainer
from tests.unit.shimv2.scripted import Pod, ScriptedShim, bundle_and_runtime

IDENT = "cd" * 32
PID = 4711


class Ended(ScriptedShim):
    """A shim whose one task is in the state ``status``; None: it knows it no more."""

    def __init__(self, bundle: Path, status: Status | None) -> None:
        super().__init__(bundle, code=3)
        self._status = status

    async def answer(self, method: str) -> Message:
        if self._status is None:
            raise NotFound("task does not exist")
        if method == "State":
            return StateResponse(id=IDENT, pid=PID, status=self._status, exit_status=self.code)
        if method == "Wait":
            return WaitResponse(exit_status=self.code)
        return await super().answer(method)


@pytest.mark.parametrize(
    ("status", "told", "calls", "freed"),
    [
        (Status.STOPPED, ExitStatus(3), ["Delete"], True),
        (Status.STOPPED, None, ["State", "Wait", "Delete"], True),
        (None, None, ["State", "Wait", "Delete"], True),
        (Status.RUNNING, None, ["State"], False),
    ],
)
async def test_what_has_ended_is_freed(
    tmp_path: Path, status: Status | None, told: ExitStatus | None, calls: list[str], freed: bool
) -> None:
    async with Supervisor("test") as tasks:
        bundle, runtime = bundle_and_runtime(tmp_path, IDENT, tasks)
        shim, pod = Ended(bundle, status), Pod()
        container = ShimContainer(runtime, pod, ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO()), quiet=True)
        container.adopt(cast("Any", shim), pid=PID, ended=told)
        await container.release()
        await container.release()
    assert shim.calls[: len(calls)] == calls
    assert pod.freed == ([IDENT] if freed else [])
