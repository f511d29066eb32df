"""A pod on a runc-compatible runtime: pinned namespaces that core made, and a pause process only where PIDs are shared."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import NoReturn

import anyio
from anyio import to_thread

from bridge.aio import Rollback
from bridge.errors import IllegalTransition, InvalidRequest
from bridge.host import netdial
from bridge.host.oci_documents import with_pid_namespace
from bridge.oci.container import OciContainer, load
from bridge.oci.runtime import OciRuntime
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, ContainerIO, ContainerSpec, ExitStatus, Record, SandboxSpec

_VERSION = 1


class OciSandbox:
    """See the module docstring (bridge.ports.runtime.SandboxHandle). Made by ``create_sandbox`` or ``load_sandbox``."""

    def __init__(self, runtime: OciRuntime, spec: SandboxSpec, pause: OciContainer | None) -> None:
        self._runtime = runtime
        self._spec = spec
        self._pause = pause
        self._dialer = netdial.Dialer(spec.namespaces.net)

    @property
    def id(self) -> str:
        """The sandbox's id; its pause process, if any, has the same at the runtime and at the monitor."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Pid of the pause process."""
        return None if self._pause is None else self._pause.pid

    @property
    def record(self) -> Record:
        """The pause process's, if there is one."""
        return {"v": _VERSION, "pause": None if self._pause is None else dict(self._pause.record)}

    async def create_container(self, spec: ContainerSpec) -> OciContainer:
        """Write its bundle; nothing is run. Plugins may adjust its spec. Raises IllegalTransition when the shared PID namespace is gone."""
        oci = self._runtime.context.adjusted(spec.oci, spec.id, self._spec, self._runtime.cli.settings.handler)
        if self.pid is not None:
            oci = with_pid_namespace(oci, SANDBOX_PID_NAMESPACE, f"/proc/{self.pid}/ns/pid")
        elif with_pid_namespace(oci, SANDBOX_PID_NAMESPACE, "") is not oci:
            raise IllegalTransition(f"sandbox {self.id} has no process whose PID namespace could be shared")
        return await OciContainer.create(self._runtime, replace(spec, oci=oci))

    async def load_container(self, spec: ContainerSpec, record: Record) -> OciContainer:
        """See bridge.oci.container.load."""
        return await load(self._runtime, spec, record)

    async def port_forward(self, port: int) -> socket.socket:
        """From within the pod's network namespace, or the host's if the pod uses that."""
        return await self._dialer.dial(port)

    async def wait(self) -> ExitStatus:
        """The pause process's exit; without one it never returns."""
        return await _for_ever() if self._pause is None else await self._pause.wait()

    async def stop(self) -> None:
        """End the pause process, and with it everyone in the shared PID namespace."""
        self._dialer.rest()
        if self._pause is not None:
            await self._pause.delete()

    async def delete(self) -> None:
        """The same: nothing else is ours."""
        await self.stop()


async def _for_ever() -> NoReturn:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


def _pause_spec(spec: SandboxSpec) -> ContainerSpec:
    if spec.oci is None:
        raise InvalidRequest(f"sandbox {spec.id} shares its PID namespace, which needs the spec of a pause process", field="oci")
    return ContainerSpec(spec.id, spec.id, spec.state_dir / "pause", spec.oci, ContainerIO())


async def create(runtime: OciRuntime, spec: SandboxSpec) -> OciSandbox:
    """Nothing is run unless the pod shares its PID namespace. Raises RuntimeFailed; then nothing is left."""
    if not spec.shared_pid:
        return OciSandbox(runtime, spec, None)
    pause_spec = _pause_spec(spec)
    await to_thread.run_sync(lambda: pause_spec.bundle.mkdir(mode=0o700, exist_ok=True))
    async with Rollback(f"start the pause process of {spec.id[:13]}") as undo:
        pause = await OciContainer.create(runtime, pause_spec)
        undo.push("delete the pause process", pause.delete)
        await pause.start()
        undo.commit()
    return OciSandbox(runtime, spec, pause)


async def load_sandbox(runtime: OciRuntime, spec: SandboxSpec, record: Record) -> OciSandbox:
    """The sandbox from before a restart. NotFound when its pause process was never started."""
    if not spec.shared_pid:
        return OciSandbox(runtime, spec, None)
    return OciSandbox(runtime, spec, await load(runtime, _pause_spec(spec), record.get("pause") or {}))
