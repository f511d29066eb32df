"""One container behind a shim.

Creating it writes the bundle and runs nothing. Starting it is Create and Start of its shim, which its pod starts when there is none yet.
Its stdio is held by the monitor, as a shim knows fifos alone. One Wait stays open as long as it runs; when the shim has died, its
binary's verb "delete" ends what is left, and that is the exit.
"""

from __future__ import annotations

import contextlib
import math
import signal as signals
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from anyio import to_thread

from bridge.aio import Rollback
from bridge.errors import IllegalTransition, NotFound, ShimGone, TimedOut, Unsupported
from bridge.host import cgroup_kill
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.oci_documents import at_start, owns_pid_namespace, write_json
from bridge.ports.host import Monitor
from bridge.ports.runtime import ContainerSpec, ExecSpec, ExitStatus, Record
from bridge.shimv2 import exits, limits
from bridge.shimv2.execs import ShimExec
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.shim import Shim
from bridge.shimv2.stats import Sampler
from bridge.shimv2.task import ShimTask, Stdio

_VERSION = 1
_IO = "io"


class Pod(Protocol):
    """What a container needs of its sandbox."""

    async def shim_for(self, spec: ContainerSpec) -> Shim:
        """The shim that is to hold it, started if need be."""
        ...

    async def done_with(self, ident: str, shim: Shim) -> None:
        """Nothing of container ``ident`` is left in ``shim``."""
        ...


class ShimContainer:
    """See the module docstring (bridge.ports.runtime.ContainerHandle). ``quiet``: its stdio is nobody's, as a sandbox's."""

    def __init__(self, runtime: ShimRuntime, pod: Pod, spec: ContainerSpec, *, quiet: bool = False) -> None:
        self._runtime = runtime
        self._pod = pod
        self._cgroup = runtime.cgroup(spec.oci)
        self._owns_pid_namespace = owns_pid_namespace(spec.oci)
        self._spec = replace(spec, oci={})  # it is in the bundle; here it would be 20 KiB a container
        self._quiet = quiet
        self._pid: int | None = None
        self._shim: Shim | None = None
        self._exit: ExitStatus | None = None
        self._freed = False
        self._ending = anyio.Lock()
        self._freeing = anyio.Lock()
        self._sampler = Sampler()
        self._pins = runtime.pin()

    @classmethod
    async def create(cls, runtime: ShimRuntime, pod: Pod, spec: ContainerSpec, *, quiet: bool = False) -> ShimContainer:
        """Write the bundle."""
        await to_thread.run_sync(write_json, spec.bundle / "config.json", at_start(spec.oci))
        return cls(runtime, pod, spec, quiet=quiet)

    def adopt(self, shim: Shim | None, *, pid: int | None, ended: ExitStatus | None) -> None:
        """Take over what a lost server had started."""
        self._shim, self._pid, self._exit = shim, pid, ended
        if ended is None and not self._quiet:
            self._pins.open(self._spec.bundle / _IO)

    @property
    def id(self) -> str:
        """The container's id, also at the shim and at the monitor."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Pid that the shim told, the host's (a virtual machine's is the hypervisor's), kept after the exit; None before the start."""
        return self._pid

    @property
    def record(self) -> Record:
        """Where its shim listens is in the shim's bundle, of which this is the path."""
        return {"v": _VERSION, "pid": self._pid or 0, "shim": "" if self._shim is None else str(self._shim.bundle)}

    @property
    def cgroup(self) -> str | None:
        """Its cgroup, from the hierarchies' root; None where the host can't see into it."""
        return self._cgroup

    @property
    def _task(self) -> ShimTask | None:
        return None if self._shim is None else ShimTask(self._shim, self.id)

    def _started(self) -> ShimTask:
        task = self._task
        if task is None or self._pid is None:
            raise IllegalTransition(f"container {self.id} was not started")
        return task

    async def start(self) -> int:
        """Create and Start at its shim. Raises RuntimeFailed, whose ``start_code`` tells "not found" from other failures."""
        timeouts = self._runtime.settings.timeouts
        limit = timeouts.kill + timeouts.delete
        async with Rollback(f"start container {self.id[:13]}", step_timeout=limit) as undo:
            undo.push("end what was started", self.take_back)
            shim = await self._pod.shim_for(self._spec)
            await self._runtime.mark(self.id, self._spec.sandbox_id, self._spec.bundle, shim.bundle)
            self._shim = shim
            task = ShimTask(shim, self.id)
            if not self._quiet:
                await self._runtime.lasting(self._hold)
            # Held on: a shim opens its fifos in Create, and would wait for ever for the reader of a monitor that has just been lost.
            async with exits.held(task, self._keep_held):
                await self._create(task)
                self._pid = await task.start(timeout=timeouts.start)
            undo.commit()
        return self._pid

    async def _create(self, task: ShimTask) -> None:
        settings = self._runtime.settings
        # A shim can't be told to stop a Create, and knows nothing of the container before its end: there is no undo until then.
        with anyio.CancelScope(shield=True):
            options = settings.options_of(self._spec.io)
            await task.create(self._spec.bundle, settings.given(self._stdio()), options=options, timeout=settings.timeouts.create)
        await anyio.lowlevel.checkpoint_if_cancelled()

    def _stdio(self) -> Stdio:
        if self._quiet:
            return Stdio()
        io, directory = self._spec.io, self._spec.bundle / _IO
        stdin = str(directory / "stdin") if io.stdin else ""
        stderr = "" if io.terminal else str(directory / "stderr")
        return Stdio(stdin, str(directory / "stdout"), stderr, io.terminal)

    async def _hold(self, monitor: Monitor) -> None:
        self._pins.open(self._spec.bundle / _IO)
        await monitor.hold(self.id, self._spec.bundle / _IO, self._spec.io)
        self._pins.open(self._spec.bundle / _IO)

    async def take_back(self) -> None:
        """Undo a start that was not finished."""
        try:
            if self._shim is not None:
                await self._end()
                await self._free()
            await self._let_go()
        finally:
            self._shim, self._pid, self._exit, self._freed = None, None, None, False

    async def wait(self) -> ExitStatus:
        """Its exit; goes on over the loss of monitors and connections. That of a shim that died has the reason ShimDied."""
        async with self._ending:
            if self._exit is None:
                task = self._started()
                assert self._shim is not None
                async with exits.held(task, self._keep_held):
                    status = await exits.of(self._runtime, self._shim, task, self._spec.bundle, self._cgroup)
                await self._tell(status)
                self._exit = status
        return self._exit

    async def _keep_held(self, task: ShimTask) -> None:
        """Have each monitor hold the stdio, the one that replaces another too, and tell the shim when the input has ended."""

        async def stay(monitor: Monitor) -> None:
            await self._hold(monitor)
            if self._spec.io.stdin and self._spec.io.stdin_once and not self._spec.io.terminal:
                await monitor.stdin_closed(self.id)
                with contextlib.suppress(NotFound, IllegalTransition, ShimGone):
                    await task.close_stdin()
            await monitor.wait(self.id)

        if not self._quiet:
            await self._runtime.lasting(stay, patience=math.inf)

    async def _tell(self, status: ExitStatus) -> None:
        """Have the monitor log the rest and keep the exit."""

        async def ended(monitor: Monitor) -> None:
            await self._hold(monitor)
            await monitor.ended(self.id, status, drain=self._runtime.settings.drain)

        if not self._quiet:
            await self._runtime.lasting(ended, patience=math.inf)
            self._pins.close()

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Signal its first process, or with ``all_processes`` everyone in it; ended is success."""
        task, timeout = self._task, self._runtime.settings.timeouts.kill
        if task is None or self._exit is not None:
            return
        with contextlib.suppress(NotFound, IllegalTransition, ShimGone):  # gone: whoever waits for the exit ends what is left
            await task.kill(signal, everyone=all_processes, timeout=timeout)
        directory = cgroup_kill.kill_directory(self._cgroup)
        if all_processes and directory is not None:
            await to_thread.run_sync(cgroup_kill.signal_all, directory, signal, timeout)

    async def exec(self, spec: ExecSpec) -> ShimExec:
        """Exec and Start at its shim. Raises IllegalTransition when it does not run, RuntimeFailed."""
        task = self._started()
        if self._exit is not None:
            raise IllegalTransition(f"container {self.id} has ended")
        started = ShimExec(self._runtime, task, spec, self._spec.bundle)
        await started.start(self._cgroup, self._runtime.tasks)
        return started

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """See the port; what a slow reader does to the container is in bridge.monitor.attach."""
        if self._exit is None:  # it may have replaced another a moment ago, and a second try would find the descriptors closed
            await self._runtime.lasting(self._hold)
        await self._runtime.monitor.attach(self.id, stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """See the port."""
        if not self._spec.io.terminal:
            raise Unsupported("the container has no terminal")
        await self._started().resize(width, height)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """One Update, none before the start; the bundle follows. Raises RuntimeFailed."""
        task = self._task if self._pid is not None else None
        await limits.update(task, self._spec.bundle, resources, timeout=self._runtime.settings.timeouts.exec)

    async def stats(self) -> CgroupStats | None:
        """What the shim says that it uses; None before the start and after the exit."""
        task = self._task
        return None if task is None or self._exit is not None else await self._sampler.sample(task)

    async def reopen_log(self) -> None:
        """After the log file was renamed. Raises IllegalTransition when it has ended."""
        await self._runtime.lasting(lambda monitor: exits.asked(monitor, lambda to: to.reopen_log(self.id), self._hold, self._exit))

    async def release(self) -> None:
        """Free the shim's state after the exit: one Delete, or nothing when it was done. A running container stays as it is."""
        if self._exit is None and self._task is not None and await exits.is_over(self._task):
            await self.wait()  # which another server was told
        if self._exit is not None:
            await self._free()

    async def delete(self) -> None:
        """Kill what is left, free the shim's state and the monitor's record. Raises RuntimeFailed, TimedOut, MonitorGone."""
        if self._shim is not None and not self._freed:
            await self._end()
            await self._free()
        await self._let_go()

    async def _end(self) -> None:
        """Kill it and wait for its exit."""
        timeout = self._runtime.settings.timeouts.kill
        if self._exit is not None or (self._pid is None and await exits.never_runs(self._runtime, self._task)):
            return
        await self.kill(signals.SIGKILL)
        with anyio.move_on_after(timeout) as scope:
            await (self._until_gone() if self._pid is None else self.wait())
        if scope.cancelled_caught:
            raise TimedOut(f"container {self.id} did not end within {timeout:g} s of SIGKILL")

    async def _until_gone(self) -> None:
        """Wait for the end of one whose start was not told: it was created at most, or a Start is still under way in the shim."""
        assert self._task is not None
        with contextlib.suppress(NotFound, ShimGone):
            await self._task.wait()

    async def _free(self) -> None:
        async with self._freeing:
            if self._freed or self._shim is None:
                return
            directory = cgroup_kill.kill_directory(self._cgroup)
            if not self._owns_pid_namespace and directory is not None:
                # Its children outlive it, and runtimes only kill them where the PID namespace is the host's.
                await to_thread.run_sync(cgroup_kill.signal_all, directory, signals.SIGKILL, self._runtime.settings.timeouts.kill)
            if self._pid is None:
                await exits.free_unfinished(self._runtime, self._shim, self.id, self._spec.bundle, self._cgroup)
            else:
                await exits.free(self._runtime, self._shim, self.id, self._spec.bundle)
            self._freed = True
            await self._pod.done_with(self.id, self._shim)

    async def _let_go(self) -> None:
        """Of the monitor's record, and of the mark."""
        self._pins.close()
        if not self._quiet:
            await exits.let_go(self._runtime, self.id, self._exit)
        self._runtime.oom.discard(self.id)
        self._runtime.ended.discard(self.id)
        await self._runtime.unmark(self.id)
