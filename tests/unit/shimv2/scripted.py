"""What tests of one container of a lost server stand on: a shim that answers by a script, a pod that only frees, and the marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from betterproto2 import Message

from bridge._proto.containerd.task.v2 import DeleteResponse
from bridge.aio import Supervisor
from bridge.ports.host import HostContext
from bridge.ports.runtime import SandboxKind
from bridge.shimv2.runtime import ShimRuntime, ShimSettings
from bridge.shimv2.sandbox import ShimSandbox
from bridge.shimv2.shim import Shim
from bridge.shimv2.verbs import ShimBinary


class ScriptedShim:
    """Notes each call, and answers as ``answer`` says; a Delete always succeeds, telling ``code``."""

    def __init__(self, bundle: Path, *, code: int = 0) -> None:
        self.bundle = bundle
        self.calls: list[str] = []
        self.code = code

    async def call(self, method: str, request: Message, response_type: type[Message], *, timeout: float | None) -> Message:
        self.calls.append(method)
        return await self.answer(method)

    async def answer(self, method: str) -> Message:
        assert method == "Delete"
        return DeleteResponse(exit_status=self.code)

    async def is_alive(self) -> bool:
        return True


class Pod(ShimSandbox):
    """Of whom only ``done_with`` is asked."""

    def __init__(self) -> None:
        self.freed: list[str] = []

    async def done_with(self, ident: str, held: Shim) -> None:
        self.freed.append(ident)


def bundle_and_runtime(
    tmp_path: Path, ident: str, tasks: Supervisor, kind: SandboxKind = SandboxKind.NAMESPACES
) -> tuple[Path, ShimRuntime]:
    """The bundle of container ``ident``, and a handler whose shim is nobody's to see cgroups."""
    bundle, root = tmp_path / ident, tmp_path / "marks"
    bundle.mkdir()
    root.mkdir()
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2"}))
    binary = ShimBinary(path=tmp_path / "shim", handler="vm", namespace="n", events=tmp_path / "events", env={})
    return bundle, ShimRuntime(ShimSettings(binary, root, kind=kind, own_cgroups=False), cast("HostContext", None), tasks)
