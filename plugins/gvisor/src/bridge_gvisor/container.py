"""One container in a sandbox: one ``run`` with its pipes, by the monitor, which is ``create`` and ``start``; its exit by ``runsc wait``.

Creating it writes the bundle alone. Its pid is the sandbox's process: signals go by ``runsc kill``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
from anyio import to_thread

from bridge.errors import AlreadyExists, IllegalTransition, MonitorGone, NotFound, RuntimeFailed, TimedOut, Unsupported
from bridge.host.cgroup_stats import CgroupStats
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, known
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.strays import LOST_CODE, start_ticks
from bridge.ports.host import Monitor, Task
from bridge.ports.runtime import Ability, ContainerSpec, ExecSpec, ExitStatus, Record
from bridge_gvisor import execs
from bridge_gvisor.execs import GvisorExec
from bridge_gvisor.host import GvisorHost

T = TypeVar("T")
_VERSION = 1
_LAUNCH_POLL = 0.02
_EXIT_GRACE = 2.0


class GvisorContainer:
    """See the module docstring (bridge.ports.runtime.ContainerHandle). ``whole`` is its sandbox's cgroup."""

    def __init__(
        self,
        host: GvisorHost,
        spec: ContainerSpec,
        whole: str | None = None,
        *,
        pid: int | None = None,
        ticks: int = 0,
        images: Path | None = None,
    ) -> None:
        self._host = host
        self._whole = whole
        self._spec = replace(spec, oci={})
        self._pid, self._ticks = pid, ticks
        self._images = images
        self._release = anyio.Lock()
        self._released = False
        self._ended = False

    @property
    def id(self) -> str:
        """The container's id, also at runsc and at the monitor."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """Host pid of its sandbox; None before the start."""
        return self._pid

    @property
    def record(self) -> Record:
        """``pid`` and ``start_ticks`` of the sandbox let a new monitor adopt it."""
        return {"v": _VERSION, "pid": self._pid or 0, "start_ticks": self._ticks}

    @property
    def cgroup(self) -> None:
        """Only runsc can tell what it uses: the cgroup that is there for it holds no process."""

    async def start(self) -> int:
        """Two runs of runsc, of which one lasts as long as the container. Raises RuntimeFailed with what it said.

        One of a pod that is restored goes on once the last of its containers is started.
        """
        runsc, bundle = self._host.runsc, self._spec.bundle
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        console = self._host.console_socket(self.id) if self._spec.io.terminal else None
        verb, flags = "run", ["--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        if self._images is not None:
            verb, flags = "restore", [*flags, "--image-path", str(self._images)]
        if console is not None:
            flags += ["--console-socket", str(console)]
        monitor = await self._host.present()
        launch = partial(
            monitor.launch,
            self.id,
            runsc.argv(verb, *flags, self.id, log=log),
            exit_argv=self._waiting(),
            cwd=bundle,
            pid_file=pid_file,
            io=self._spec.io,
            env=runsc.settings.env,
            console_socket=console,
            timeout=runsc.settings.timeouts.start,
            on_failure=runsc.argv("delete", "--force", self.id),
        )
        try:
            self._pid = await launch()
        except LaunchFailed as exc:
            raise await runsc.launch_failure(verb, exc.exit_code, exc.stderr_tail, log) from exc
        except MonitorGone:
            # runsc may go on without it, and nobody would hold the container then: what is told as failed must not run.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + runsc.settings.timeouts.delete):
                await self.end_strays()
            raise
        self._ticks = start_ticks(self._pid) or 0
        return self._pid

    def _waiting(self) -> list[str]:
        return self._host.runsc.argv("wait", self.id)

    async def end_strays(self) -> None:
        """End what a launch that nobody holds any more has made."""
        await self._host.end_verbs(self.id)
        await self._host.runsc.delete(self.id)

    async def wait(self) -> ExitStatus:
        """Its exit, or its sandbox's; goes on over the loss of monitors."""
        try:
            status = await self._held(lambda monitor: monitor.wait(self.id), patience=math.inf)
        except NotFound:
            if self._pid is None:
                raise
            status = ExitStatus(LOST_CODE, reason="MonitorLost")
        self._ended = True
        self._host.sampler.forget(self.id)
        return status

    async def _held(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask about this container. A monitor that does not know it, because it replaced another, is given it first."""

        async def adopting(monitor: Monitor) -> T:
            try:
                return await ask(monitor)
            except NotFound:
                if self._pid is None or not self._ticks:
                    raise
                await self._adopt(monitor, self._pid)
                return await ask(monitor)

        return await self._host.lasting(adopting, patience=patience)

    async def _adopt(self, monitor: Monitor, pid: int) -> None:
        await self._host.end_verbs(self.id)  # the lost monitor's own waits for the exit
        env, argv = self._host.runsc.settings.env, self._waiting()
        with contextlib.suppress(AlreadyExists):  # somebody else who asked was quicker
            await monitor.adopt(self.id, pid, self._ticks, exit_argv=argv, cwd=self._spec.bundle, env=env)

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Signal its first process, or all of them; not started or ended is success. Raises RuntimeFailed."""
        if self._pid is None or self._ended:
            return
        try:
            await self._host.runsc.kill(self.id, signal, all_processes=all_processes)
        except RuntimeFailed:
            with anyio.move_on_after(_EXIT_GRACE):  # it may have ended in between
                await self.wait()
            if not self._ended:
                raise

    async def exec(self, spec: ExecSpec) -> GvisorExec:
        """Two processes of runsc, of which one lasts as long as the command. Raises IllegalTransition, RuntimeFailed."""
        if self._pid is None:
            raise IllegalTransition(f"container {self.id} was not started")
        started = GvisorExec(self._host, self.id, spec, self._spec.bundle)
        await started.start()
        return started

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """See the port."""
        await self._held(partial(known, self.id))  # a second attach would find the descriptors closed
        await self._host.monitor.attach(self.id, stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """See the port."""
        await self._held(lambda monitor: monitor.resize(self.id, width, height))

    async def update(self, resources: Mapping[str, Any]) -> NoReturn:
        """Declared unsupported: core asks nobody for it."""
        del resources
        raise Unsupported(self._host.features.abilities[Ability.UPDATE].detail)

    async def stats(self) -> CgroupStats | None:
        """From runsc, now or a moment ago."""
        if self._pid is None or self._ended:
            return None
        return await self._host.sampler.of(self.id, self._whole, self._spec.bundle / "cpu-time")

    async def reopen_log(self) -> None:
        """After the log file was renamed. Raises IllegalTransition when it has ended, Unsupported when its output is lost."""
        try:
            await self._held(lambda monitor: monitor.reopen_log(self.id))
        except NotFound as exc:  # for a kubelet that word means that there is no such container
            raise IllegalTransition(f"container {self.id} has ended: nothing more is logged") from exc

    async def release(self) -> None:
        """Free runsc's state and the helper of its files after the exit: one ``delete``. A running container stays as it is."""
        if self._ended or self._pid is None:
            await self._free()
            self._released = self._ended

    async def _free(self) -> None:
        async with self._release:
            await self._host.runsc.delete(self.id)

    async def delete(self) -> None:
        """Kill what is left, free runsc's state and the monitor's record. Raises RuntimeFailed, TimedOut, MonitorGone."""
        if not self._released:
            await self._free()
            await self._await_end()
        self._host.sampler.forget(self.id)
        await self._host.lasting(lambda monitor: monitor.forget(self.id))

    async def _await_end(self) -> None:
        timeout = self._host.runsc.settings.timeouts.kill
        with contextlib.suppress(NotFound):
            with anyio.move_on_after(timeout) as scope:
                await self._host.lasting(lambda monitor: monitor.wait(self.id))
            if scope.cancelled_caught:
                raise TimedOut(f"container {self.id} did not end within {timeout:g} s of its removal by runsc")


async def load(host: GvisorHost, spec: ContainerSpec, whole: str | None, record: Record) -> GvisorContainer:
    """The container from before a restart. NotFound when neither the monitor nor a bundle knows it.

    One that runs without a monitor is adopted when it is waited for; one whose launch outlived server and monitor is ended.
    """
    pid, ticks = int(record.get("pid", 0)), int(record.get("start_ticks", 0))
    task = await _task(host, spec.id)
    if task is not None:
        pid, ticks = task.pid, ticks or start_ticks(task.pid) or 0
    if pid:
        await execs.end_orphans(host, spec.id, spec.bundle)
        return GvisorContainer(host, spec, whole, pid=pid, ticks=ticks)
    if not await to_thread.run_sync((spec.bundle / "config.json").exists):
        raise NotFound(f"container {spec.id}: neither the monitor nor its bundle knows it")
    container = GvisorContainer(host, spec, whole)
    await container.end_strays()
    return container


async def _task(host: GvisorHost, ident: str) -> Task | None:
    """The monitor's task, once a launch that is under way is over (the monitor gives it a deadline)."""
    while True:
        found = [task for task in await host.lasting(lambda monitor: monitor.tasks(ident)) if task.id == ident]
        if not found or found[0].pid:
            return found[0] if found else None
        await anyio.sleep(_LAUNCH_POLL)
