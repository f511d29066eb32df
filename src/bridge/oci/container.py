"""One container of a runc-compatible runtime.

Creating it writes the bundle's config.json and runs nothing. Starting it is one ``run --detach`` through the monitor. Signals
go by pidfd through the monitor, so a stop runs nothing either. After the exit one ``delete`` frees the runtime's state.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge.errors import HostError, IllegalTransition, NotFound, TimedOut
from bridge.host import cgroups
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.execs import OciExec
from bridge.oci.runtime import OciRuntime, write_json
from bridge.ports.runtime import ContainerSpec, ExecSpec, ExitStatus, Record

_VERSION = 1
LOST_CODE = 255


class OciContainer:
    """See the module docstring (bridge.ports.runtime.ContainerHandle). Made by ``create`` or ``load``."""

    __slots__ = ("_cgroup", "_ended", "_lost", "_owns_pid_namespace", "_pid", "_release", "_released", "_runtime", "_spec", "_start_ticks")

    def __init__(
        self, runtime: OciRuntime, spec: ContainerSpec, *, pid: int | None = None, start_ticks: int = 0, lost: bool = False
    ) -> None:
        self._runtime = runtime
        # The OCI spec is in the bundle. Here it would be 20 KiB a container, for two facts.
        self._cgroup = runtime.cgroup(spec.oci)
        self._owns_pid_namespace = _owns_pid_namespace(spec.oci)
        self._spec = replace(spec, oci={})
        self._pid = pid
        self._start_ticks = start_ticks
        self._lost = lost
        self._release = anyio.Lock()
        self._ended = False
        self._released = False

    @classmethod
    async def create(cls, runtime: OciRuntime, spec: ContainerSpec) -> OciContainer:
        """Write the bundle."""
        await to_thread.run_sync(write_json, spec.bundle / "config.json", spec.oci)
        return cls(runtime, spec)

    @property
    def id(self) -> str:
        """The container's id, also at the runtime and at the monitor."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Host pid of its first process, kept after its exit; None before the start."""
        return self._pid

    @property
    def record(self) -> Record:
        """``pid`` and ``start_ticks`` (of /proc/PID/stat) let a new monitor adopt it."""
        return {"v": _VERSION, "pid": self._pid or 0, "start_ticks": self._start_ticks}

    async def start(self) -> int:
        """One runtime invocation. Raises RuntimeFailed, whose ``start_code`` tells "not found" from other failures."""
        cli, bundle = self._runtime.cli, self._spec.bundle
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        console = self._runtime.console_socket(self.id) if self._spec.io.terminal else None
        flags = ["--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), *cli.settings.run_args]
        if console is not None:
            flags += ["--console-socket", str(console)]
        launch = partial(
            self._runtime.monitor.launch,
            self.id,
            cli.argv("run", *flags, self.id, log=log),
            cwd=bundle,
            pid_file=pid_file,
            io=self._spec.io,
            env=cli.settings.env,
            console_socket=console,
            timeout=cli.settings.timeouts.start,
            on_failure=cli.argv("delete", "--force", self.id),
        )
        try:
            self._pid = await self._runtime.launched(launch)
        except LaunchFailed as exc:
            raise await self._runtime.failure("run", exc, log) from exc
        self._start_ticks = start_ticks(self._pid) or 0
        return self._pid

    async def wait(self) -> ExitStatus:
        """Its exit; goes on over the loss of a monitor. An exit that nobody saw is code 255, reason MonitorLost."""
        if not self._lost:
            try:
                status = await self._runtime.lasting(lambda monitor: monitor.wait(self.id))
                self._ended = True
                return status
            except NotFound:
                if self._pid is None:
                    raise
                self._lost = True
        return ExitStatus(LOST_CODE, reason="MonitorLost")

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Signal its first process, or with ``all_processes`` everyone in its cgroup; ended is success."""
        with contextlib.suppress(NotFound):
            await self._runtime.monitor.kill(self.id, signal)
        if all_processes and self._pid is not None:
            directory = self._kill_directory()
            if directory is not None:
                await to_thread.run_sync(_signal_all, directory, signal, self._runtime.cli.settings.timeouts.kill)

    def _kill_directory(self) -> Path | None:
        mounts = cgroups.layout().mounts
        mount = mounts.get("" if cgroups.is_v2() else "freezer")
        return mount.directory(self._cgroup) if mount is not None and self._cgroup is not None else None

    async def exec(self, spec: ExecSpec) -> OciExec:
        """One runtime invocation. Raises IllegalTransition when it does not run, RuntimeFailed."""
        if self._pid is None:
            raise IllegalTransition(f"container {self.id} was not started")
        started = OciExec(self._runtime, spec, self._spec.bundle)
        await started.start(self.id, self._cgroup)
        return started

    async def reopen_log(self) -> None:
        """After the log file was renamed."""
        await self._runtime.monitor.reopen_log(self.id)

    async def release(self) -> None:
        """Free the runtime's state after the exit: one ``delete``, or nothing when it was done. A running container stays as it is."""
        if self._pid is not None and (self._start_ticks and start_ticks(self._pid) == self._start_ticks):
            return
        await self._free(force=False)
        self._released = self._ended

    async def _free(self, *, force: bool) -> None:
        async with self._release:
            if not await to_thread.run_sync(self._runtime.cli.state_dir(self.id).exists):
                return
            if not self._owns_pid_namespace:
                # Its children outlive it, and runtimes only kill them where the PID namespace is the host's.
                await self.kill(signals.SIGKILL, all_processes=True)
            await self._runtime.cli.delete(self.id, force=force)

    async def delete(self) -> None:
        """Kill what is left, free the runtime's state and the monitor's record. Raises RuntimeFailed, TimedOut, MonitorGone."""
        if not self._released:  # else its exit was seen and its state freed: RemoveContainer has nothing to ask
            await self._end()
            await self._free(force=True)
        await self._runtime.lasting(lambda monitor: monitor.forget(self.id))

    async def _end(self) -> None:
        timeout = self._runtime.cli.settings.timeouts.kill
        with contextlib.suppress(NotFound):
            await self._runtime.lasting(lambda monitor: monitor.kill(self.id, signals.SIGKILL))
            with anyio.move_on_after(timeout) as scope:
                await self._runtime.lasting(lambda monitor: monitor.wait(self.id))
            if scope.cancelled_caught:
                raise TimedOut(f"process {self._pid} of container {self.id} did not end within {timeout:g} s of SIGKILL")


def _owns_pid_namespace(oci: Mapping[str, Any]) -> bool:
    found = oci.get("linux", {}).get("namespaces", ())
    return any(namespace.get("type") == "pid" and not namespace.get("path") for namespace in found)


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, which with the pid names a process for ever; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _signal_all(directory: Path, signal: int, timeout: float) -> None:
    if signal == signals.SIGKILL:
        cgroups.kill_all(directory, timeout=timeout)
        return
    for pid in cgroups.pids(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal)


async def load(runtime: OciRuntime, spec: ContainerSpec, record: Record) -> OciContainer:
    """The container from before a restart, from what the monitor holds. NotFound when there is neither a task nor a bundle.

    One that ran but that the monitor lost is adopted if it still runs; else its handle tells code 255, reason MonitorLost.
    """
    pid, ticks = int(record.get("pid", 0)), int(record.get("start_ticks", 0))
    for task in await runtime.monitor.tasks():
        if task.id == spec.id:
            return OciContainer(runtime, spec, pid=task.pid or None, start_ticks=ticks or start_ticks(task.pid) or 0)
    if pid:
        return await _adopt(runtime, spec, pid, ticks)
    if not await to_thread.run_sync((spec.bundle / "config.json").exists):
        raise NotFound(f"container {spec.id}: neither the monitor nor its bundle knows it")
    return OciContainer(runtime, spec)


async def _adopt(runtime: OciRuntime, spec: ContainerSpec, pid: int, ticks: int) -> OciContainer:
    lost = True
    if ticks and start_ticks(pid) == ticks:
        with contextlib.suppress(NotFound, HostError):
            await runtime.monitor.adopt(spec.id, pid, ticks)
            lost = False
    return OciContainer(runtime, spec, pid=pid, start_ticks=ticks, lost=lost)


def with_pid_namespace(oci: Mapping[str, Any], placeholder: str, path: str) -> Mapping[str, Any]:
    """``oci`` with the sandbox's PID namespace in place of the placeholder."""
    linux = dict(oci.get("linux", {}))
    namespaces = linux.get("namespaces", ())
    if not any(namespace.get("path") == placeholder for namespace in namespaces):
        return oci
    linux["namespaces"] = [{**n, "path": path} if n.get("path") == placeholder else n for n in namespaces]
    return {**oci, "linux": linux}
