"""A pod behind a shim: one shim process for the pod, and for the kinds CONTAINER and VM the sandbox's own container first.

A pod of pinned namespaces has no shim until its first container starts: RunPodSandbox runs nothing. The shim is the pod's from then on,
which costs one process (8 to 11 MB with containerd's shim for runc) instead of one a container, and outlives each container, so that a
crash loop starts no shims. Its bundle is the pod's own, so it does not stand in the directory of a container that was removed.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import anyio
from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.errors import BridgeError, IllegalTransition, InvalidRequest, NotFound, ShimGone
from bridge.host import netdial
from bridge.host.oci_documents import with_pid_namespace, write_json
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, ContainerIO, ContainerSpec, ExitStatus, Record, SandboxKind, SandboxSpec
from bridge.shimv2 import execs, exits, shim
from bridge.shimv2.container import ShimContainer
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.shim import Shim
from bridge.shimv2.task import ShimTask, State, Status

_VERSION = 1
_DIRECTORY = "shim"
_QUIET_LOOKS, _LOOK_SECONDS = 5, 0.05
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
_GROUPS = ("io.containerd.runc.v2.group", SANDBOX_ID)
"""Annotations by which a shim knows which containers share it."""

_logger = log.get("shimv2.sandbox")


class ShimSandbox:
    """See the module docstring (bridge.ports.runtime.SandboxHandle). Made by ``create`` or ``load``."""

    def __init__(self, runtime: ShimRuntime, spec: SandboxSpec, held: Shim | None) -> None:
        self._runtime = runtime
        self._spec = spec
        self._bundle = pod_bundle(spec)
        self._shim = held
        self._starting = anyio.Lock()
        self._dialer = netdial.Dialer(spec.namespaces.net)
        self.main: ShimContainer | None = None
        """The sandbox's own container, where it has one."""

    @property
    def id(self) -> str:
        """The sandbox's id; its own container has the same."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Pid of its own container's process, of a virtual machine the hypervisor's."""
        return None if self.main is None else self.main.pid

    @property
    def record(self) -> Record:
        """Its own container's. Where the shim listens is in its bundle."""
        return {"v": _VERSION, "main": None if self.main is None else dict(self.main.record)}

    async def start_main(self) -> None:
        """Start the sandbox's own container. Raises RuntimeFailed, ShimGone; then nothing is left."""
        spec, runtime = main_spec(self._spec), self._runtime
        oci = runtime.fitting(grouped(spec.oci, self.id))
        adjusted = runtime.context.adjusted(oci, self.id, self._spec, runtime.settings.handler)
        async with Rollback(f"start the sandbox of {self.id[:13]}") as undo:
            undo.push("end the shim", self._end_shim)
            self.main = await ShimContainer.create(self._runtime, self, replace(spec, oci=adjusted), quiet=True)
            undo.push("delete the sandbox's container", self.main.delete)
            await self.main.start()
            undo.commit()

    async def create_container(self, spec: ContainerSpec) -> ShimContainer:
        """Write its bundle; nothing is run. Plugins may adjust its spec. Raises IllegalTransition when the shared PID namespace is gone."""
        oci = self._runtime.context.adjusted(spec.oci, spec.id, self._spec, self._runtime.settings.handler)
        if self.pid is not None and self._runtime.settings.kind is not SandboxKind.VM:
            oci = with_pid_namespace(oci, SANDBOX_PID_NAMESPACE, f"/proc/{self.pid}/ns/pid")
        elif self.pid is None and with_pid_namespace(oci, SANDBOX_PID_NAMESPACE, "") is not oci:
            raise IllegalTransition(f"sandbox {self.id} has no process whose PID namespace could be shared")
        return await ShimContainer.create(self._runtime, self, replace(spec, oci=self._runtime.fitting(grouped(oci, self.id))))

    async def shim_for(self, spec: ContainerSpec) -> Shim:
        """The pod's shim, started if there is none that lives; or the container's own. Raises RuntimeFailed, IllegalTransition."""
        if self._runtime.settings.per_container:
            return await shim.start(self._runtime, spec.id, self.id, spec.bundle)
        async with self._starting:
            if self._shim is not None and await self._shim.is_alive():
                return self._shim
            if self.main is not None and self.main.pid is not None:
                raise IllegalTransition(f"sandbox {self.id} has died with its shim")
            if self._shim is not None:
                await self._shim.clear()
            self._shim = None
            await self._write_bundle()
            self._shim = await shim.start(self._runtime, self.id, self.id, self._bundle)
            return self._shim

    async def _write_bundle(self) -> None:
        """A config.json for a shim that serves a pod without a container of its own: it tells who shares the shim."""
        if self.main is None:
            stub = grouped({"ociVersion": "1.0.2", "annotations": dict(_names(self._spec))}, self.id)
            await to_thread.run_sync(_make_bundle, self._bundle, stub)

    async def done_with(self, ident: str, held: Shim) -> None:
        """End a shim that was started for one container, unless it took up others."""
        if self._runtime.settings.per_container:
            with contextlib.suppress(BridgeError):
                await ShimTask(held, ident).shut_down()
            await held.leave()

    async def load_container(self, spec: ContainerSpec, record: Record) -> ShimContainer:
        """See the port: from what the monitor holds, then from what the shim says."""
        return await load_container(self._runtime, self, spec, record, self._shim)

    async def port_forward(self, port: int) -> socket.socket:
        """From within the pod's network namespace, or the host's if the pod uses that; a guest at its addresses."""
        guest = self._spec.ips if self._runtime.settings.kind is SandboxKind.VM else ()
        return await self._dialer.dial(port, addresses=guest)

    async def wait(self) -> ExitStatus:
        """The exit of the sandbox's own container; without one it never returns."""
        return await _for_ever() if self.main is None else await self.main.wait()

    async def update(self, resources: Mapping[str, Any]) -> None:
        """One Update of the sandbox's own container, which stands for the pod. Raises RuntimeFailed."""
        if self.main is not None:
            await self.main.update(resources)

    async def stop(self) -> None:
        """End the sandbox's own container and the shim."""
        self._dialer.rest()
        if self.main is not None:
            await self.main.delete()
        await self._end_shim()

    async def _end_shim(self) -> None:
        async with self._starting:
            if self._shim is not None:
                await self._shim.end()
                self._shim = None

    async def delete(self) -> None:
        """The same: nothing else is ours."""
        await self.stop()


async def _for_ever() -> NoReturn:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


def pod_bundle(spec: SandboxSpec) -> Path:
    """Where a pod's shim is started: a directory that has the sandbox's name, as the verb "delete" wants it."""
    return spec.state_dir / _DIRECTORY / spec.id


def main_spec(spec: SandboxSpec) -> ContainerSpec:
    """The sandbox's own container. Raises InvalidRequest when nobody said what it is."""
    if spec.oci is None:
        raise InvalidRequest(f"sandbox {spec.id} needs the spec of a container of its own", field="oci")
    return ContainerSpec(spec.id, spec.id, pod_bundle(spec), spec.oci, ContainerIO())


def has_main(runtime: ShimRuntime, spec: SandboxSpec) -> bool:
    """Whether the sandbox has a container of its own."""
    return spec.shared_pid or runtime.settings.kind is not SandboxKind.NAMESPACES


def _names(spec: SandboxSpec) -> Mapping[str, str]:
    return {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-name": spec.name,
        "io.kubernetes.cri.sandbox-namespace": spec.namespace,
        "io.kubernetes.cri.sandbox-uid": spec.uid,
    }


def grouped(oci: Mapping[str, Any], sandbox_id: str) -> Mapping[str, Any]:
    """``oci`` with the group of its pod, whatever the pod's own annotations say."""
    return {**oci, "annotations": {**(oci.get("annotations") or {}), **dict.fromkeys(_GROUPS, sandbox_id)}}


def _make_bundle(bundle: Path, oci: Mapping[str, Any]) -> None:
    bundle.mkdir(mode=0o711, parents=True, exist_ok=True)
    write_json(bundle / "config.json", oci)


async def create(runtime: ShimRuntime, spec: SandboxSpec) -> ShimSandbox:
    """Start the sandbox's own container where it has one; else nothing is run. Raises RuntimeFailed; then nothing is left."""
    sandbox = ShimSandbox(runtime, spec, None)
    if has_main(runtime, spec):
        await to_thread.run_sync(lambda: pod_bundle(spec).mkdir(mode=0o711, parents=True, exist_ok=True))
        await sandbox.start_main()
    return sandbox


async def load(runtime: ShimRuntime, spec: SandboxSpec, record: Record) -> ShimSandbox:
    """The sandbox from before a restart. NotFound when its own container was never started."""
    held = await shim.load(runtime, spec.id, pod_bundle(spec))
    if held is not None:
        held.keep()
    sandbox = ShimSandbox(runtime, spec, held)
    if has_main(runtime, spec):
        if held is None:
            raise NotFound(f"sandbox {spec.id}: its shim was never started")
        sandbox.main = await load_container(runtime, sandbox, main_spec(spec), record.get("main") or {}, held, quiet=True)
    return sandbox


async def load_container(
    runtime: ShimRuntime, pod: ShimSandbox, spec: ContainerSpec, record: Record, held: Shim | None, *, quiet: bool = False
) -> ShimContainer:
    """A container from before a restart: its exit if the monitor knows it, else what the shim says. NotFound when there is no bundle.

    One that was created but not started is undone; execs whose callers are gone are ended.
    """
    if not await to_thread.run_sync((spec.bundle / "config.json").exists):
        raise NotFound(f"container {spec.id}: neither its shim nor its bundle knows it")
    container = ShimContainer(runtime, pod, spec, quiet=quiet)
    if runtime.settings.per_container:
        held = await shim.load(runtime, spec.id, spec.bundle)
        if held is not None:
            held.keep()
    pid = int(record.get("pid", 0)) or None
    if pid is None and not await runtime.is_marked(spec.id):
        return container  # it was never started
    tasks = [] if quiet else await runtime.lasting(lambda monitor: monitor.tasks(spec.id))
    ended = tasks[0].exit if tasks else None
    if held is None and pid is not None and ended is None:
        ended = ExitStatus(exits.LOST_CODE, at_ns=time.time_ns(), reason=exits.CONTAINER_LOST)
    if held is None or ended is not None:
        container.adopt(held, pid=pid, ended=ended)
        return container
    return await _from_shim(runtime, container, held, spec, pid)


async def _from_shim(runtime: ShimRuntime, container: ShimContainer, held: Shim, spec: ContainerSpec, pid: int | None) -> ShimContainer:
    task = ShimTask(held, spec.id)
    try:
        state = await (task.state() if pid is not None else _settled(runtime, task, spec.bundle))
        if state.status is Status.CREATED:
            container.adopt(held, pid=None, ended=None)
            await _undo_unfinished(container, held)
            return container
        container.adopt(held, pid=pid or state.pid, ended=None)
        await execs.end_orphans(runtime, task, spec.bundle, container.cgroup)
    except NotFound:
        container.adopt(held, pid=pid, ended=None)
        if pid is None:
            await _undo_unfinished(container, held)
    except ShimGone:
        if await held.is_alive():
            raise
        container.adopt(held, pid=pid, ended=None)  # whoever waits for it learns how it ended
    return container


async def _undo_unfinished(container: ShimContainer, held: Shim) -> None:
    """Remove what a Create left that was cut off when the server was lost; what withstands, when the container is removed."""
    try:
        await container.take_back()
    except BridgeError as exc:
        _logger.error("container %s: its start, which was cut off, can't be undone: %s", container.id[:13], exc)
        container.adopt(held, pid=None, ended=None)


async def _settled(runtime: ShimRuntime, task: ShimTask, bundle: Path) -> State:
    """Its state once a Create that a lost server asked for is over: until then a shim does not know it. Raises NotFound."""
    binary, deadline, quiet = runtime.settings.binary.path, anyio.current_time() + runtime.settings.timeouts.create, 0
    while True:
        try:
            return await task.state()
        except NotFound:
            busy = await to_thread.run_sync(shim.runtime_pids, binary, task.id, bundle)
            quiet = 0 if busy else quiet + 1
            if quiet >= _QUIET_LOOKS or anyio.current_time() > deadline:
                raise
        await anyio.sleep(_LOOK_SECONDS)
