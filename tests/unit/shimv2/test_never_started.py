"""A container that a lost server had created at its shim and never started: what is waited for before it is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from betterproto2 import Message

from bridge._proto.containerd.task.v2 import DeleteResponse, StateResponse, WaitResponse
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import Status
from bridge.aio import Supervisor
from bridge.ports.host import HostContext
from bridge.ports.runtime import ContainerIO, ContainerSpec, SandboxKind
from bridge.shimv2.runtime import ShimRuntime, ShimSettings
from bridge.shimv2.sandbox import ShimSandbox, load_container
from bridge.shimv2.shim import Shim
from bridge.shimv2.verbs import ShimBinary

IDENT = "ab" * 32
SECONDS = 20.0


class ScriptedShim:
    """Answers as a shim that has one task; a guest's tells no exit of what it has not started."""

    def __init__(self, bundle: Path, *, guest: bool) -> None:
        self.bundle = bundle
        self.calls: list[str] = []
        self._guest = guest
        self._killed = anyio.Event()

    async def call(self, method: str, request: Message, response_type: type[Message], *, timeout: float | None) -> Message:
        self.calls.append(method)
        if method == "State":
            return StateResponse(id=IDENT, pid=4711, status=Status.CREATED)
        if method == "Wait":
            await (anyio.sleep_forever() if self._guest else self._killed.wait())
            return WaitResponse(exit_status=137)
        if method == "Delete":
            return DeleteResponse(exit_status=0)
        assert method == "Kill"
        self._killed.set()
        return Empty()

    async def is_alive(self) -> bool:
        return True


class Pod(ShimSandbox):
    """Of whom only ``done_with`` is asked."""

    def __init__(self) -> None:
        self.freed: list[str] = []

    async def done_with(self, ident: str, held: Shim) -> None:
        self.freed.append(ident)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(SandboxKind.VM, ["State", "State", "Delete"]), (SandboxKind.CONTAINER, ["State", "Kill", "Wait", "Delete"])],
)
async def test_a_created_container_is_taken_back_without_waiting_for_an_exit_that_never_comes(
    tmp_path: Path, kind: SandboxKind, calls: list[str]
) -> None:
    bundle, root = tmp_path / IDENT, tmp_path / "marks"
    bundle.mkdir()
    root.mkdir()
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2"}))
    binary = ShimBinary(path=tmp_path / "shim", handler="vm", namespace="n", events=tmp_path / "events", env={})
    settings = ShimSettings(binary, root, kind=kind, own_cgroups=False)
    shim, pod = ScriptedShim(bundle, guest=kind is SandboxKind.VM), Pod()
    async with Supervisor("test") as tasks:
        runtime = ShimRuntime(settings, cast("HostContext", None), tasks)
        await runtime.mark(IDENT, IDENT, bundle, bundle)
        spec = ContainerSpec(IDENT, IDENT, bundle, {}, ContainerIO())
        with anyio.fail_after(SECONDS / 2):  # the kill timeout is as long as SECONDS
            loaded = await load_container(runtime, pod, spec, {}, cast("Any", shim), quiet=True)
        assert (shim.calls, loaded.pid, pod.freed) == (calls, None, [IDENT])
        assert not await runtime.is_marked(IDENT), "nothing is left to be found by the next server"
