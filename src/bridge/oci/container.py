"""One container of a runc-compatible runtime.

Creating it writes the bundle's config.json and runs nothing. Starting it is one ``run --detach`` through the monitor. Signals
go by pidfd through the monitor, so a stop runs nothing either. After the exit one ``delete`` frees the runtime's state.
"""

from __future__ import annotations

import contextlib
import math
import signal as signals
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from bridge.errors import AlreadyExists, IllegalTransition, MonitorGone, NotFound, RuntimeFailed, TimedOut
from bridge.host import cgroup_kill
from bridge.host.oci_documents import owns_pid_namespace, write_json
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, known
from bridge.monitor.protocol import LaunchFailed
from bridge.oci import execs, limits, strays
from bridge.oci.checkpoints import Checkpointed, launch_words, restorable
from bridge.oci.dialect import Launch, Scope
from bridge.oci.execs import OciExec
from bridge.oci.runtime import OciRuntime
from bridge.oci.strays import start_ticks
from bridge.ports.host import Monitor, Task
from bridge.ports.runtime import ContainerSpec, ExecSpec, ExitStatus, Record

T = TypeVar("T")
_VERSION = 1
_LAUNCH_POLL = 0.02


class OciContainer(Checkpointed):
    """See the module docstring (bridge.ports.runtime.ContainerHandle). Made by ``create`` or ``load``."""

    __slots__ = ("_cgroup", "_ended", "_owns_pid_namespace", "_pid", "_release", "_released", "_runtime", "_spec", "_ticks", "_witness")

    def __init__(self, runtime: OciRuntime, spec: ContainerSpec, *, pid: int | None = None, ticks: int = 0) -> None:
        self._runtime = runtime
        # The OCI spec is in the bundle. Here it would be 20 KiB a container, for two facts.
        self._cgroup = runtime.cgroup(spec.oci)
        self._owns_pid_namespace = owns_pid_namespace(spec.oci)
        self._spec = replace(spec, oci={})
        self._pid = pid
        self._ticks = ticks
        self._witness = strays.Witness.of(pid, ticks)
        self._release = anyio.Lock()
        self._ended = False
        self._released = False

    @classmethod
    async def create(cls, runtime: OciRuntime, spec: ContainerSpec) -> OciContainer:
        """Write the bundle."""
        scope = Scope.PAUSE if spec.id == spec.sandbox_id else Scope.CONTAINERS
        oci = spec.oci
        if spec.restore is not None:
            oci = await to_thread.run_sync(restorable, oci, runtime.version, spec.bundle)
        await to_thread.run_sync(write_json, spec.bundle / "config.json", runtime.final(oci, scope))
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
        return {"v": _VERSION, "pid": self._pid or 0, "start_ticks": self._ticks}

    @property
    def cgroup(self) -> str | None:
        """Its cgroup, from the hierarchies' root."""
        return self._cgroup

    async def start(self) -> int:
        """One runtime invocation. Raises RuntimeFailed, whose ``start_code`` tells "not found" from other failures."""
        cli, bundle = self._runtime.cli, self._spec.bundle
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        console = self._runtime.console_socket(self.id) if self._spec.io.terminal else None
        verb, flags = launch_words(cli, self._spec, pid_file, console)
        monitor = await self._runtime.present()
        launch = partial(
            monitor.launch,
            self.id,
            cli.argv(verb, *flags, self.id, log=log),
            cwd=bundle,
            pid_file=pid_file,
            io=self._spec.io,
            env=cli.settings.env,
            console_socket=console,
            timeout=cli.settings.timeouts.start,
            on_failure=cli.deletion(self.id),
        )
        try:
            self._pid = await self._runtime.launched(launch)
        except LaunchFailed as exc:
            raise await self._failure(verb, exc, log) from exc
        except MonitorGone:
            # The runtime may go on without it, and nobody would hold the container then: what is told as failed must not run.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + cli.settings.timeouts.delete):
                await self._end_strays()
            raise
        self._ticks = start_ticks(self._pid) or 0
        self._witness = strays.Witness.of(self._pid, self._ticks)
        if verb is Launch.CREATE:
            await self._start_created()
        await self._forget_images()
        return self._pid

    async def _start_created(self) -> None:
        """The second step of a runtime that creates and starts. A container that can't be started is ended."""
        cli = self._runtime.cli
        try:
            await cli.check("start", self.id, timeout=cli.settings.timeouts.start)
        except BaseException:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + cli.settings.timeouts.delete):
                await self._end()
                await cli.delete(self.id, force=True)
                await self._runtime.lasting(lambda monitor: monitor.forget(self.id))
                self._pid, self._ticks = None, 0
            raise

    async def _end_created(self) -> None:
        """End it if the server ended between its creation and its start: nobody would start it."""
        with contextlib.suppress(RuntimeFailed):  # the runtime does not know it any more
            if (await self._runtime.cli.state(self.id)).get("status") == "created":
                await self._runtime.cli.delete(self.id, force=True)

    async def _end_strays(self) -> None:
        """End the runtime of a launch that nobody holds any more, and what it made."""
        cli = self._runtime.cli
        await to_thread.run_sync(strays.end_verbs, cli.settings.path, self.id)
        if await cli.knows(self.id):
            await cli.delete(self.id, force=True)
        if self._cgroup is not None:
            await to_thread.run_sync(strays.end_cgroup, self._cgroup, cli.settings.timeouts.kill)

    async def wait(self) -> ExitStatus:
        """Its exit; goes on over the loss of monitors. An exit that nobody can tell is code 255, reason MonitorLost."""
        try:
            status = await self._held(lambda monitor: monitor.wait(self.id), patience=math.inf)
            self._ended = True
        except NotFound:
            if self._pid is None:
                raise
            return await self._witness.testify()
        return status

    async def _held(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask about this container. A monitor that does not know it, because it replaced another, is given the live process first."""

        async def adopting(monitor: Monitor) -> T:
            try:
                return await ask(monitor)
            except NotFound:
                if self._pid is None or not self._ticks or start_ticks(self._pid) != self._ticks:
                    raise
                with contextlib.suppress(AlreadyExists):  # somebody else who asked was quicker
                    await monitor.adopt(self.id, self._pid, self._ticks)
                return await ask(monitor)

        return await self._runtime.lasting(adopting, patience=patience)

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Signal its first process, or with ``all_processes`` everyone in its cgroup; ended is success."""
        with contextlib.suppress(NotFound):
            await self._held(lambda monitor: monitor.kill(self.id, signal))
        if all_processes and self._pid is not None:
            directory = cgroup_kill.kill_directory(self._cgroup)
            if directory is not None:
                await to_thread.run_sync(cgroup_kill.signal_all, directory, signal, self._runtime.cli.settings.timeouts.kill)

    async def exec(self, spec: ExecSpec) -> OciExec:
        """One runtime invocation. Raises IllegalTransition when it does not run, RuntimeFailed."""
        if self._pid is None:
            raise IllegalTransition(f"container {self.id} was not started")
        started = OciExec(self._runtime, spec, self._spec.bundle)
        await started.start(self.id, self._cgroup)
        return started

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """See the port; what a slow reader does to the container is in bridge.monitor.attach."""
        await self._held(partial(known, self.id))  # a second attach would find the descriptors closed
        await self._runtime.monitor.attach(self.id, stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """See the port."""
        await self._held(lambda monitor: monitor.resize(self.id, width, height))

    async def update(self, resources: Mapping[str, Any]) -> None:
        """One runtime invocation, none before the start; the bundle follows. Raises RuntimeFailed."""
        await limits.update(self._runtime.cli, self._spec.bundle, self.id, self._cgroup, resources, started=self._pid is not None)

    async def stats(self) -> None:
        """Its cgroup tells."""

    async def reopen_log(self) -> None:
        """After the log file was renamed. Raises IllegalTransition when it has ended, Unsupported when its output is lost."""
        try:
            await self._held(lambda monitor: monitor.reopen_log(self.id))
        except NotFound as exc:  # for a kubelet that word means that there is no such container
            raise IllegalTransition(f"container {self.id} has ended: nothing more is logged") from exc

    async def release(self) -> None:
        """Free the runtime's state after the exit: one ``delete``, or nothing when it was done. A running container stays as it is."""
        if self._pid is not None and self._ticks and start_ticks(self._pid) == self._ticks:
            return
        await self._free(force=False)
        self._released = self._ended
        if self._ended:  # nobody will ask the witness, and letting go of a pidfd takes a third of a millisecond: not RemoveContainer's
            self._witness.close()

    async def _free(self, *, force: bool) -> None:
        async with self._release:
            if not await self._runtime.cli.knows(self.id):
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
        self._witness.close()

    async def _end(self) -> None:
        timeout = self._runtime.cli.settings.timeouts.kill
        with contextlib.suppress(NotFound):
            await self._held(lambda monitor: monitor.kill(self.id, signals.SIGKILL))
            with anyio.move_on_after(timeout) as scope:
                await self._held(lambda monitor: monitor.wait(self.id))
            if scope.cancelled_caught:
                raise TimedOut(f"process {self._pid} of container {self.id} did not end within {timeout:g} s of SIGKILL")


async def load(runtime: OciRuntime, spec: ContainerSpec, record: Record) -> OciContainer:
    """The container from before a restart, from what the monitor holds. NotFound when there is neither a task nor a bundle.

    One that runs without a monitor is adopted when it is waited for; one whose launch outlived server and monitor is ended.
    """
    pid, ticks = int(record.get("pid", 0)), int(record.get("start_ticks", 0))
    container, task = None, await _task(runtime, spec.id)
    if task is not None:
        container = OciContainer(runtime, spec, pid=task.pid, ticks=ticks or start_ticks(task.pid) or 0)
        if not pid and runtime.cli.dialect.launch is Launch.CREATE:
            await container._end_created()
    elif pid:
        container = OciContainer(runtime, spec, pid=pid, ticks=ticks)
    if container is not None:
        await execs.end_orphans(container.cgroup, runtime.cli.settings.timeouts.kill)
        return container
    if not await to_thread.run_sync((spec.bundle / "config.json").exists):
        raise NotFound(f"container {spec.id}: neither the monitor nor its bundle knows it")
    container = OciContainer(runtime, spec)
    await container._end_strays()
    return container


async def _task(runtime: OciRuntime, ident: str) -> Task | None:
    """The monitor's task, once a launch that is under way is over (the monitor gives it a deadline)."""
    while True:
        found = await runtime.lasting(lambda monitor: monitor.tasks(ident))
        if not found or found[0].pid:
            return found[0] if found else None
        await anyio.sleep(_LAUNCH_POLL)
