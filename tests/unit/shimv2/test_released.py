"""A container that had ended when its server was killed: the next server frees it, also when nobody is left who was told of the exit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from betterproto2 import Message

from bridge._proto.containerd.task.v2 import DeleteResponse, StateResponse, WaitResponse
from bridge._proto.containerd.v1.types import Status
from bridge.aio import Supervisor
from bridge.errors import NotFound
from bridge.ports.host import HostContext
from bridge.ports.runtime import ContainerIO, ContainerSpec, ExitStatus
from bridge.shimv2.container import ShimContainer
from bridge.shimv2.runtime import ShimRuntime, ShimSettings
from bridge.shimv2.sandbox import ShimSandbox
from bridge.shimv2.shim import Shim
from bridge.shimv2.verbs import ShimBinary

IDENT = "cd" * 32
PID = 4711


class Ended:
    """A shim whose one task is in the state ``status``; None: it knows it no more."""

    def __init__(self, bundle: Path, status: Status | None) -> None:
        self.bundle = bundle
        self.calls: list[str] = []
        self._status = status

    async def call(self, method: str, request: Message, response_type: type[Message], *, timeout: float | None) -> Message:
        self.calls.append(method)
        if self._status is None:
            raise NotFound("task does not exist")
        if method == "State":
            return StateResponse(id=IDENT, pid=PID, status=self._status, exit_status=3)
        if method == "Wait":
            return WaitResponse(exit_status=3)
        assert method == "Delete"
        return DeleteResponse(exit_status=3)

    async def is_alive(self) -> bool:
        return True


class Pod(ShimSandbox):
    """Of whom only ``done_with`` is asked."""

    def __init__(self) -> None:
        self.freed: list[str] = []

    async def done_with(self, ident: str, held: Shim) -> None:
        self.freed.append(ident)


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
    bundle, root = tmp_path / IDENT, tmp_path / "marks"
    bundle.mkdir()
    root.mkdir()
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2"}))
    binary = ShimBinary(path=tmp_path / "shim", handler="vm", namespace="n", events=tmp_path / "events", env={})
    shim, pod = Ended(bundle, status), Pod()
    async with Supervisor("test") as tasks:
        runtime = ShimRuntime(ShimSettings(binary, root, own_cgroups=False), cast("HostContext", None), tasks)
        container = ShimContainer(runtime, pod, ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO()), quiet=True)
        container.adopt(cast("Any", shim), pid=PID, ended=told)
        await container.release()
        await container.release()
    assert shim.calls[: len(calls)] == calls
    assert pod.freed == ([IDENT] if freed else [])
