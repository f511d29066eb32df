"""A pod on gVisor: a sandbox container whose process is the pod's kernel, and the containers in it.

Its process is watched by the monitor; its death is that of every container in it. Stopping it kills that process, which needs no
runsc; then one ``delete`` removes the rest.
"""

from __future__ import annotations

import contextlib
import math
import signal as signals
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from bridge.aio import Rollback
from bridge.errors import AlreadyExists, InvalidRequest, NotFound, TimedOut, Unsupported
from bridge.host import files, netdial
from bridge.host.cgroup_paths import CgroupDriver, of_cgroups_path
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.strays import LOST_CODE, start_ticks
from bridge.ports.host import Monitor
from bridge.ports.runtime import ContainerIO, ContainerSpec, ExitStatus, Record, SandboxSpec
from bridge_gvisor import container as containers
from bridge_gvisor import forwarding, hiding
from bridge_gvisor import spec as specs
from bridge_gvisor.container import GvisorContainer
from bridge_gvisor.host import GvisorHost

T = TypeVar("T")
_VERSION = 1


class GvisorSandbox:
    """See the module docstring (bridge.ports.runtime.SandboxHandle)."""

    def __init__(self, host: GvisorHost, spec: SandboxSpec, *, pid: int | None = None, ticks: int = 0) -> None:
        self._host = host
        self._spec = replace(spec, oci=None)
        self._cgroup = _cgroup(spec)
        self._pid, self._ticks = pid, ticks
        self._dialer = netdial.Dialer(spec.namespaces.net)

    @property
    def id(self) -> str:
        """The sandbox's id, also at runsc and at the monitor."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Pid of the sandbox's process; None when it was never started."""
        return self._pid

    @property
    def record(self) -> Record:
        """``pid`` and ``start_ticks`` let a new monitor adopt it."""
        return {"v": _VERSION, "pid": self._pid or 0, "start_ticks": self._ticks}

    @property
    def cgroup(self) -> str | None:
        """Where the host's kernel accounts for all of the pod, from the hierarchies' root: the pod's own, or the sandbox's without one."""
        return self._cgroup

    async def start(self, oci: dict[str, Any]) -> None:
        """One run of runsc. Raises RuntimeFailed with what it said; then nothing is left."""
        runsc, bundle = self._host.runsc, self._spec.state_dir / "sandbox"
        await self._host.write_bundle(bundle, oci)
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        verb, images = "run", list[str]()
        if self._spec.restore is not None:
            verb, images = "restore", ["--image-path", str(self._spec.restore)]
        monitor = await self._host.present()
        launch = partial(
            monitor.launch,
            self.id,
            runsc.argv(verb, "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), *images, self.id, log=log),
            cwd=bundle,
            pid_file=pid_file,
            io=ContainerIO(),
            env=runsc.settings.env,
            timeout=runsc.settings.timeouts.create,
            on_failure=runsc.argv("delete", "--force", self.id),
        )
        try:
            self._pid = await launch()
        except LaunchFailed as exc:
            raise await runsc.launch_failure(verb, exc.exit_code, exc.stderr_tail, log) from exc
        self._ticks = start_ticks(self._pid) or 0

    async def create_container(self, spec: ContainerSpec) -> GvisorContainer:
        """Write its bundle; nothing is run. Plugins may adjust its spec."""
        oci = self._host.context.adjusted(spec.oci, spec.id, self._spec, self._host.runsc.settings.handler)
        made = specs.of_container(oci, spec.id, self.id, seccomp=self._host.runsc.settings.seccomp)
        made["process"] = self._host.process(made["process"])
        await self._host.write_bundle(spec.bundle, await to_thread.run_sync(hiding.with_mounts, made, spec.bundle))
        images = self._spec.restore if spec.restore is not None else None
        return GvisorContainer(self._host, spec, self._cgroup, images=images)

    async def checkpoint_pod(self, images: Path, *, timeout: float) -> None:
        """See bridge.ports.checkpoints.PodCheckpointing: one run of runsc, for the sandbox with all that runs in it."""
        await self._host.runsc.checkpoint(self.id, images, timeout=timeout)

    async def load_container(self, spec: ContainerSpec, record: Record) -> GvisorContainer:
        """See bridge_gvisor.container.load."""
        return await containers.load(self._host, spec, self._cgroup, record)

    async def port_forward(self, port: int) -> socket.socket:
        """See bridge_gvisor.forwarding."""
        return await forwarding.connect(self._host, self._spec, self._dialer, port)

    async def wait(self) -> ExitStatus:
        """The end of the sandbox's process; 255, reason MonitorLost, when nobody saw it."""
        try:
            return await self._held(lambda monitor: monitor.wait(self.id), patience=math.inf)
        except NotFound:
            return ExitStatus(LOST_CODE, reason="MonitorLost")

    async def _held(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        async def adopting(monitor: Monitor) -> T:
            try:
                return await ask(monitor)
            except NotFound:
                if self._pid is None or not self._ticks or start_ticks(self._pid) != self._ticks:
                    raise
                with contextlib.suppress(AlreadyExists):
                    await monitor.adopt(self.id, self._pid, self._ticks)
                return await ask(monitor)

        return await self._host.lasting(adopting, patience=patience)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Nothing is to be done where the pod's cgroup has the limits. Raises Unsupported where the sandbox's own has them."""
        del resources
        if not self._spec.cgroup or self._host.runsc.settings.systemd_cgroup:
            raise Unsupported("this pod's sandbox has a cgroup of its own, whose limits were set when it was started")

    async def stop(self) -> None:
        """Kill the sandbox's process, wait for its end, and have runsc remove what is left. Raises TimedOut, RuntimeFailed."""
        self._dialer.rest()
        with contextlib.suppress(NotFound):
            await self._held(lambda monitor: _killed(monitor, self.id, self._host.runsc.settings.timeouts.kill))
        await self._host.runsc.delete(self.id)

    async def delete(self) -> None:
        """The same, with its members' state if any is left, its bundle and the monitor's record."""
        if self._pid is None:
            await self._host.end_verbs(self.id)
        await self.stop()
        for member, sandbox in await to_thread.run_sync(self._host.runsc.known):
            if sandbox == self.id:
                await self._host.runsc.delete(member)
        await to_thread.run_sync(self._host.runsc.remove_locks, "*", self.id)
        await files.remove_tree(self._spec.state_dir / "sandbox")
        await self._host.lasting(lambda monitor: monitor.forget(self.id))


def _cgroup(spec: SandboxSpec) -> str | None:
    path = (spec.oci or {}).get("linux", {}).get("cgroupsPath", "")
    if spec.cgroup or not path:
        return spec.cgroup or None
    return of_cgroups_path(path, CgroupDriver.SYSTEMD if path.count(":") == 2 else CgroupDriver.CGROUPFS)


async def _killed(monitor: Monitor, ident: str, timeout: float) -> None:
    await monitor.kill(ident, signals.SIGKILL)
    with anyio.move_on_after(timeout) as scope:
        await monitor.wait(ident)
    if scope.cancelled_caught:
        raise TimedOut(f"the process of sandbox {ident} did not end within {timeout:g} s of SIGKILL")


async def remove_stranger(host: GvisorHost, ident: str) -> None:
    """End a sandbox that no record owns, or a container in one, whatever is left of it."""
    await host.end_verbs(ident)
    with contextlib.suppress(NotFound, Unsupported):  # a container can't be killed by the monitor: runsc does it
        await host.lasting(lambda monitor: _killed(monitor, ident, host.runsc.settings.timeouts.kill))
    await host.runsc.delete(ident)

    async def forget(monitor: Monitor) -> None:
        with contextlib.suppress(NotFound):
            with anyio.move_on_after(host.runsc.settings.timeouts.kill):
                await monitor.wait(ident)
            await monitor.forget(ident)

    await host.lasting(forget)


async def create(host: GvisorHost, spec: SandboxSpec) -> GvisorSandbox:
    """Start the sandbox. Raises Unsupported, RuntimeFailed; then nothing is left."""
    if spec.oci is None:
        raise InvalidRequest(f"sandbox {spec.id} needs the spec of its first process", field="oci")
    settings = host.runsc.settings
    if settings.network == "host" and spec.namespaces.net is not None:
        await forwarding.open_low_ports(spec.namespaces.net)
    oci = host.sandbox_spec(spec)
    sandbox = GvisorSandbox(host, spec)
    async with Rollback(f"start sandbox {spec.id[:13]}") as undo:
        undo.push("delete the sandbox", sandbox.delete)
        await sandbox.start(oci)
        undo.commit()
    return sandbox


async def load(host: GvisorHost, spec: SandboxSpec, record: Record) -> GvisorSandbox:
    """The sandbox from before a restart, alive or not: what is left of it can be stopped and deleted."""
    pid, ticks = int(record.get("pid", 0)), int(record.get("start_ticks", 0))
    tasks = [task for task in await host.lasting(lambda monitor: monitor.tasks(spec.id)) if task.id == spec.id]
    if tasks and tasks[0].pid:
        pid = tasks[0].pid
        ticks = ticks or start_ticks(pid) or 0
    return GvisorSandbox(host, spec, pid=pid or None, ticks=ticks)
