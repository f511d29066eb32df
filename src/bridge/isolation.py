"""What stands between core and a plugin's backend, so that a fault of the plugin stays its handler's own.

Every call that ends by itself gets a deadline, and whatever a plugin raises that is no bridge.errors class becomes PluginFailed
with the handler, the plugin, the method and what was raised; the log gets the traceback. Waiting for an exit and attaching have no
deadline: they end with their owner. A call that blocks instead of waiting stops the whole server; no wrapper can help that.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from bridge.aio import describe
from bridge.host.cgroup_stats import CgroupStats
from bridge.isolation_calls import Guard, Guarded
from bridge.ports.checkpoints import Checkpointing, PodCheckpointing
from bridge.ports.host import RuntimeTimeouts
from bridge.ports.runtime import (
    ContainerHandle,
    ContainerSpec,
    ExecProcess,
    ExecSpec,
    ExitStatus,
    Record,
    RemoteTerminal,
    RuntimeBackend,
    RuntimeFeatures,
    SandboxHandle,
    SandboxKind,
    SandboxSpec,
)

T = TypeVar("T")
_SWEEP_SECONDS = 600.0


class GuardedExec(Guarded):
    """See bridge.ports.runtime.ExecProcess."""

    __slots__ = ()

    @property
    def pid(self) -> int:
        """See the port."""
        return int(self._guard.read(self._inner, "pid"))

    async def wait(self) -> ExitStatus:
        """See the port; no deadline."""
        return cast("ExitStatus", await self._call("wait", None))

    async def kill(self, signal: int) -> None:
        """See the port."""
        await self._call("kill", self._guard.timeouts.kill, signal)

    async def delete(self) -> None:
        """See the port."""
        await self._call("delete", 2 * self._guard.timeouts.kill)


class GuardedTerminal(GuardedExec):
    """See bridge.ports.runtime.RemoteTerminal."""

    __slots__ = ()

    async def resize(self, width: int, height: int) -> None:
        """See the port."""
        await self._call("resize", self._guard.timeouts.kill, width, height)


class GuardedHandle(Guarded):
    """What the handles of sandboxes and containers have in common."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """See the port."""
        return str(self._guard.read(self._inner, "id"))

    @property
    def record(self) -> Record:
        """See the port."""
        return cast("Record", self._guard.read(self._inner, "record"))

    @property
    def pid(self) -> int | None:
        """See the port."""
        return cast("int | None", self._guard.read(self._inner, "pid"))

    async def wait(self) -> ExitStatus:
        """See the port; no deadline."""
        return cast("ExitStatus", await self._call("wait", None))

    async def update(self, resources: Mapping[str, Any]) -> None:
        """See the port, and for sandboxes bridge.core.resources.HoldsPod."""
        await self._call("update", self._guard.timeouts.exec, resources)

    async def delete(self) -> None:
        """See the port."""
        await self._call("delete", _ending(self._guard.timeouts))


class GuardedContainer(GuardedHandle):
    """See bridge.ports.runtime.ContainerHandle."""

    __slots__ = ()

    @property
    def cgroup(self) -> str | None:
        """See the port."""
        return cast("str | None", self._guard.read(self._inner, "cgroup"))

    async def start(self) -> int:
        """See the port."""
        return int(await self._call("start", self._guard.timeouts.start))

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """See the port."""
        await self._call("kill", self._guard.timeouts.kill, signal, all_processes=all_processes)

    async def exec(self, spec: ExecSpec) -> ExecProcess:
        """See the port."""
        made = await self._call("exec", self._guard.timeouts.exec, spec)
        return (GuardedTerminal if isinstance(made, RemoteTerminal) else GuardedExec)(self._guard, made)

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """See the port; no deadline."""
        await self._call("attach", None, stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """See the port."""
        await self._call("resize", self._guard.timeouts.kill, width, height)

    async def stats(self) -> CgroupStats | None:
        """See the port."""
        return cast("CgroupStats | None", await self._call("stats", self._guard.timeouts.probe))

    async def reopen_log(self) -> None:
        """See the port."""
        await self._call("reopen_log", self._guard.timeouts.kill)

    async def release(self) -> None:
        """See the port."""
        await self._call("release", _ending(self._guard.timeouts))


class GuardedCheckpointing(GuardedContainer):
    """See bridge.ports.checkpoints.Checkpointing."""

    __slots__ = ()

    async def pause(self) -> None:
        """See the port."""
        await self._call("pause", self._guard.timeouts.exec)

    async def resume(self) -> None:
        """See the port."""
        await self._call("resume", 2 * self._guard.timeouts.exec)

    async def checkpoint(self, images: Path, work: Path, *, timeout: float) -> None:
        """See the port."""
        await self._call("checkpoint", timeout, images, work, timeout=timeout)


def _container(guard: Guard, made: Any) -> GuardedContainer:
    return (GuardedCheckpointing if isinstance(made, Checkpointing) else GuardedContainer)(guard, made)


class GuardedSandbox(GuardedHandle):
    """See bridge.ports.runtime.SandboxHandle."""

    __slots__ = ()

    @property
    def cgroup(self) -> str | None:
        """See the port; None of a plugin that has none."""
        return cast("str | None", self._guard.read(self._inner, "cgroup", None))

    async def create_container(self, spec: ContainerSpec) -> ContainerHandle:
        """See the port."""
        return _container(self._guard, await self._call("create_container", self._guard.timeouts.create, spec))

    async def load_container(self, spec: ContainerSpec, record: Record) -> ContainerHandle:
        """See the port."""
        return _container(self._guard, await self._call("load_container", self._guard.timeouts.create, spec, record))

    async def port_forward(self, port: int) -> socket.socket:
        """See the port."""
        return cast("socket.socket", await self._call("port_forward", self._guard.timeouts.probe, port))

    async def stop(self) -> None:
        """See the port."""
        await self._call("stop", _ending(self._guard.timeouts))


class GuardedPodCheckpointing(GuardedSandbox):
    """See bridge.ports.checkpoints.PodCheckpointing."""

    __slots__ = ()

    async def checkpoint_pod(self, images: Path, *, timeout: float) -> None:
        """See the port."""
        await self._call("checkpoint_pod", timeout, images, timeout=timeout)


def _sandbox(guard: Guard, made: Any) -> GuardedSandbox:
    return (GuardedPodCheckpointing if isinstance(made, PodCheckpointing) else GuardedSandbox)(guard, made)


class GuardedBackend(Guarded):
    """See bridge.ports.runtime.RuntimeBackend. Raises PluginFailed at once for a backend without features or a kind."""

    __slots__ = ("features", "sandbox_kind")

    def __init__(self, guard: Guard, inner: RuntimeBackend) -> None:
        own = getattr(inner, "timeouts", None)  # a plugin whose options set deadlines knows better than the handler's defaults
        super().__init__(replace(guard, timeouts=own) if isinstance(own, RuntimeTimeouts) else guard, inner)
        self.features: RuntimeFeatures = self._checked("features", RuntimeFeatures)
        self.sandbox_kind: SandboxKind = self._checked("sandbox_kind", SandboxKind)

    def _checked(self, name: str, kind: type[T]) -> T:
        found = self._guard.read(self._inner, name)
        if not isinstance(found, kind):
            raise self._guard.failed(name, f"is {type(found).__name__}, not {kind.__name__}")
        return found

    async def create_sandbox(self, spec: SandboxSpec) -> SandboxHandle:
        """See the port."""
        return _sandbox(self._guard, await self._call("create_sandbox", self._guard.timeouts.create, spec))

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> SandboxHandle:
        """See the port."""
        return _sandbox(self._guard, await self._call("load_sandbox", self._guard.timeouts.create, spec, record))

    def final_spec(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the backend makes of a container's spec before its runtime gets it; as it is, where the backend can't tell."""
        return self._shown("final_spec", oci, oci)

    def final_sandbox_spec(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """The same of a pod's own container."""
        return self._shown("final_sandbox_spec", spec, spec.oci or {})

    def _shown(self, name: str, given: object, unchanged: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises PluginFailed."""
        if not hasattr(self._inner, name):
            return unchanged
        try:
            return cast("Mapping[str, Any]", getattr(self._inner, name)(given))
        except Exception as exc:
            raise self._guard.failed(name, f"raised {describe(exc)}") from exc

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """See the port."""
        return cast("Sequence[str]", await self._call("remove_strangers", _SWEEP_SECONDS, known))


def _ending(timeouts: RuntimeTimeouts) -> float:
    """What a thorough end may take: kill, wait, free, and once more with force."""
    return 2 * (timeouts.kill + timeouts.delete)
