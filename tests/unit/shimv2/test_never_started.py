"""A container that a lost server had created at its shim and never started: what is waited for before it is removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from betterproto2 import Message

from bridge._proto.containerd.task.v2 import StateResponse, WaitResponse
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import Status
from bridge.aio import Supervisor
from bridge.ports.runtime import ContainerIO, ContainerSpec, SandboxKind
from bridge.shimv2.sandbox import load_container
from tests.unit.shimv2.scripted import Pod, ScriptedShim, bundle_and_runtime

IDENT = "ab" * 32
SECONDS = 20.0


class Created(ScriptedShim):
    """A shim that has one task; a guest's tells no exit of what it has not started."""

    def __init__(self, bundle: Path, *, guest: bool) -> None:
        super().__init__(bundle)
        self._guest = guest
        self._killed = anyio.Event()

    async def answer(self, method: str) -> Message:
        if method == "State":
            return StateResponse(id=IDENT, pid=4711, status=Status.CREATED)
        if method == "Wait":
            await (anyio.sleep_forever() if self._guest else self._killed.wait())
            return WaitResponse(exit_status=137)
        if method == "Kill":
            self._killed.set()
            return Empty()
        return await super().answer(method)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(SandboxKind.VM, ["State", "State", "Delete"]), (SandboxKind.CONTAINER, ["State", "Kill", "Wait", "Delete"])],
)
async def test_a_created_container_is_taken_back_without_waiting_for_an_exit_that_never_comes(
    tmp_path: Path, kind: SandboxKind, calls: list[str]
) -> None:
    async with Supervisor("test") as tasks:
        bundle, runtime = bundle_and_runtime(tmp_path, IDENT, tasks, kind)
        shim, pod = Created(bundle, guest=kind is SandboxKind.VM), Pod()
        await runtime.mark(IDENT, IDENT, bundle, bundle)
        spec = ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO())
        with anyio.fail_after(SECONDS / 2):  # the kill timeout is as long as SECONDS
            loaded = await load_container(runtime, pod, spec, {}, cast("Any", shim), quiet=True)
        assert (shim.calls, loaded.pid, pod.freed) == (calls, None, [IDENT])
        assert not await runtime.is_marked(IDENT), "nothing is left to be found by the next server"
