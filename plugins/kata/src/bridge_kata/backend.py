"""Pods in virtual machines, over a backend that only runs shims or commands (bridge.ports.runtime.RuntimeBackend).

What is Kata's own is here: the specs it wants, a root file system for the sandbox container that no other pod uses, a machine
that ends also when its runtime does not, and what a failed one leaves on the host.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.errors import BridgeError, HostError, InvalidRequest, Unsupported
from bridge.ports.host import RuntimeTimeouts
from bridge.ports.runtime import (
    ContainerHandle,
    ContainerSpec,
    ExitStatus,
    Record,
    RuntimeBackend,
    RuntimeFeatures,
    SandboxHandle,
    SandboxKind,
    SandboxSpec,
)
from bridge_kata import leftovers, sizing, specs, steering
from bridge_kata.leftovers import Places
from bridge_kata.specs import Choices

_logger = log.get("kata")
_ROOTFS = "rootfs"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one handler. ``bundle`` tells where the kit has the sandbox container's bundle: Kata unmounts what is at its ``rootfs``.

    ``refuse`` names the option to blame when a pod's annotation is refused, "" where it is left out. ``fixed_size`` tells that Kata's
    configuration has machines sized at their boot alone.
    """

    choices: Choices
    features: RuntimeFeatures
    stop_timeout: float
    bundle: Callable[[SandboxSpec], Path]
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)
    refuse: str = ""
    fixed_size: bool = False
    places: Places = field(default_factory=Places)


class KataBackend:
    """See the module docstring."""

    def __init__(self, inner: RuntimeBackend, settings: Settings) -> None:
        self._inner = inner
        self._settings = settings

    @property
    def features(self) -> RuntimeFeatures:
        """What the probe found."""
        return self._settings.features

    @property
    def timeouts(self) -> RuntimeTimeouts:
        """As the options set them."""
        return self._settings.timeouts

    @property
    def sandbox_kind(self) -> SandboxKind:
        """A virtual machine."""
        return SandboxKind.VM

    async def create_sandbox(self, spec: SandboxSpec) -> KataSandbox:
        """Boot a machine for the pod. Raises Unsupported, Denied naming the field, or what the runtime said; then nothing is left."""
        if spec.namespaces.net is None:
            raise Unsupported("config.linux.security_context.namespace_options.network: a machine can't be in the node's network")
        if self._settings.refuse:
            steering.refuse_withheld(spec.annotations, (spec.oci or {}).get("annotations") or {}, self._settings.refuse)
        async with Rollback(f"boot the machine of {spec.id[:13]}", step_timeout=self._settings.stop_timeout) as undo:
            undo.push("remove what the machine left", lambda: leftovers.remove(spec.id, self._settings.places))
            changed = self._changed(spec)
            await _own_rootfs(spec, self._settings.bundle(spec) / _ROOTFS)
            _note_size(changed)
            inner = await self._inner.create_sandbox(changed)
            undo.commit()
        return KataSandbox(inner, changed, self._settings)

    def _changed(self, spec: SandboxSpec) -> SandboxSpec:
        return replace(spec, oci=specs.sandbox(spec, self._settings.bundle(spec) / _ROOTFS, self._settings.choices))

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> KataSandbox:
        """The machine from before a restart."""
        changed = self._changed(spec)
        return KataSandbox(await self._inner.load_sandbox(changed, record), changed, self._settings)

    def final_spec(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """A container's spec as Kata gets it, but for the place of a shared PID namespace, which only a pod knows."""
        made = specs.for_guest(oci, self._settings.choices)
        final: Mapping[str, Any] = self._inner.final_spec(made) if hasattr(self._inner, "final_spec") else made
        return final

    def final_sandbox_spec(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """The spec by which Kata boots a pod's machine."""
        changed = self._changed(spec)
        inner = self._inner
        final: Mapping[str, Any] = inner.final_sandbox_spec(changed) if hasattr(inner, "final_sandbox_spec") else changed.oci or {}
        return final

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """Those of the inner backend, with what their machines left."""
        removed = await self._inner.remove_strangers(known)
        for ident in removed:
            await leftovers.remove(ident, self._settings.places)
        return removed


class KataSandbox:
    """One machine (bridge.ports.runtime.SandboxHandle)."""

    def __init__(self, inner: SandboxHandle, spec: SandboxSpec, settings: Settings) -> None:
        self._inner = inner
        self._spec = spec
        self._settings = settings

    @property
    def id(self) -> str:
        """The sandbox's, also of the machine."""
        return self._inner.id

    @property
    def record(self) -> Record:
        """The inner backend's."""
        return self._inner.record

    @property
    def pid(self) -> int | None:
        """The hypervisor's."""
        return self._inner.pid

    async def create_container(self, spec: ContainerSpec) -> ContainerHandle:
        """With its spec as Kata wants it."""
        return await self._inner.create_container(self._for_guest(spec))

    async def load_container(self, spec: ContainerSpec, record: Record) -> ContainerHandle:
        """The container from before a restart."""
        return await self._inner.load_container(self._for_guest(spec), record)

    def _for_guest(self, spec: ContainerSpec) -> ContainerSpec:
        return replace(spec, oci=specs.container(spec.oci, self._settings.choices, self.pid))

    async def port_forward(self, port: int) -> socket.socket:
        """To the pod's address: the guest has its own localhost, which the namespace on the host is not."""
        return await self._inner.port_forward(port)

    async def wait(self) -> ExitStatus:
        """The machine's end."""
        return await self._inner.wait()

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Nothing: Kata plugs CPUs and memory in, or out, as each container's limits change. Raises Unsupported where it does not."""
        del resources  # given to the sandbox container, they would count twice: Kata adds up what all containers may have
        if self._settings.fixed_size:
            raise Unsupported("Kata sizes machines once, at their boot (static_sandbox_resource_mgmt in its configuration)")

    async def stop(self) -> None:
        """Power the machine off; if that does not succeed in time, kill its processes and have the runtime see to the rest."""
        done = False
        with anyio.move_on_after(self._settings.stop_timeout):
            try:
                await self._inner.stop()
                done = True
            except BridgeError as exc:
                _logger.warning("machine %s can't be powered off: %s", self.id[:13], exc)
        if not done:
            _logger.warning("the processes of machine %s are killed", self.id[:13])
            await leftovers.end_processes(self.id)
            await self._inner.stop()

    async def delete(self) -> None:
        """Stop it and remove every trace of it."""
        await self.stop()
        await self._inner.delete()
        await leftovers.remove(self.id, self._settings.places)


async def _own_rootfs(spec: SandboxSpec, target: Path) -> None:
    """A copy of the pause process's root: Kata shares it with the guest and may, when it fails, delete in it."""
    source = ((spec.oci or {}).get("root") or {}).get("path")
    if not source:
        raise InvalidRequest(f"sandbox {spec.id} needs the spec of a sandbox container", field="oci")
    try:
        await to_thread.run_sync(lambda: shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True))
    except (OSError, shutil.Error) as exc:
        raise HostError(f"can't copy the sandbox container's root {source}: {exc}") from exc


def _note_size(spec: SandboxSpec) -> None:
    found = sizing.workload((spec.oci or {}).get("annotations") or {})
    _logger.debug("machine %s is to hold a workload of %g CPUs and %d MiB beside itself", spec.id, found.cpus, found.mib)
