"""One exec in a container behind a shim: Exec and Start, its exit by Wait, its end by Delete.

Its process is moved to a sub-cgroup right after the start, so that its end takes along what it forked since (kubernetes#124226), and what
it forked before is known by its tag (bridge.host.process_tags). A file in the container's bundle, which holds that tag, tells a later
server that a lost one had an exec under way, whose caller is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio import to_thread

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import BridgeError, HostError, IllegalTransition, NotFound, ShimGone, TimedOut
from bridge.host import cgroup_kill, cgroups, process_tags
from bridge.ports.runtime import ExecSpec, ExitStatus
from bridge.shimv2.bridging import Bridge
from bridge.shimv2.runtime import SHIM_DIED, ShimRuntime
from bridge.shimv2.task import ShimTask

_PREFIX = "exec-"
_FREEZER = "freezer"
_DRAIN_SECONDS = 1.0
"""How long an exit waits for output that the shim has yet to copy; beyond it somebody else holds the pipe."""
_LOST_CODE = 255
_GUEST_SECONDS = 1.0
"""The same after a SIGKILL, for a process in a guest: one call can't reach what it forked, and that may hold its output for ever."""
_SWEEP_SECONDS = 0.005

_logger = log.get("shimv2.exec")


class ShimExec:
    """A running exec (bridge.ports.runtime.ExecProcess and RemoteTerminal). Made by ``start`` alone."""

    def __init__(self, runtime: ShimRuntime, task: ShimTask, spec: ExecSpec, bundle: Path) -> None:
        self._runtime = runtime
        self._task = task
        self._spec = spec
        self._mark = bundle / f"{_PREFIX}{spec.id}"
        self._bridge: Bridge | None = None
        self._tag = process_tags.new()
        self._container: Path | None = None
        self._directories: tuple[Path, ...] = ()
        self._pid = 0
        self._added = False
        self._deleted = False

    @property
    def pid(self) -> int:
        """Its pid, as the host numbers it; of a virtual machine the hypervisor's."""
        return self._pid

    async def start(self, cgroup: str | None, tasks: Supervisor) -> None:
        """Run it. Raises RuntimeFailed, IllegalTransition when the container is gone; then nothing of it is left."""
        ident, timeout = self._spec.id, self._runtime.settings.timeouts.exec
        try:
            await to_thread.run_sync(self._prepare, cgroup)
            self._bridge = Bridge(self._spec)
            self._added = True
            process = process_tags.tagged(self._spec.process, self._tag)
            # A shim can't be told to stop a Start, and one that is under way can't be undone.
            with anyio.CancelScope(shield=True):
                await self._task.add(ident, process, self._runtime.settings.given(self._bridge.stdio), timeout=timeout)
                self._pid = await self._task.start(ident, timeout=timeout)
            await anyio.lowlevel.checkpoint_if_cancelled()
            self._bridge.run(tasks, lambda: self._task.close_stdin(ident))
            for directory in self._directories:
                await to_thread.run_sync(cgroups.move, self._pid, directory)
        except BaseException:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 2 * self._runtime.settings.timeouts.kill):
                await self._delete_logged()
            raise

    def _prepare(self, cgroup: str | None) -> None:
        self._mark.write_text(str(self._tag))
        self._container = cgroup_kill.kill_directory(cgroup)
        if cgroup is None:
            return
        try:
            name = f"{_PREFIX}{self._spec.id}"
            self._directories = cgroups.create_child(cgroup, name, controller=None if cgroups.is_v2() else _FREEZER)
        except HostError as exc:
            if exc.errno == errno.ENOENT:
                raise IllegalTransition("the container's cgroup is gone: it has ended") from exc
            raise

    async def wait(self) -> ExitStatus:
        """Its exit, once the shim has copied its output, or a second later."""
        try:
            status = await self._task.wait(self._spec.id)
        except (ShimGone, NotFound) as exc:
            _logger.warning("the exit of an exec is lost: %s", exc)
            return ExitStatus(_LOST_CODE, reason=SHIM_DIED)
        with anyio.move_on_after(_DRAIN_SECONDS):
            await self._free()
        return status

    async def kill(self, signal: int) -> None:
        """Signal the process itself; ended is success."""
        with contextlib.suppress(NotFound, IllegalTransition):
            await self._task.kill(signal, self._spec.id)

    async def resize(self, width: int, height: int) -> None:
        """Set its terminal's size; one that has ended has none."""
        with contextlib.suppress(NotFound, IllegalTransition):
            await self._task.resize(width, height, self._spec.id)

    async def delete(self) -> None:
        """Kill whatever is left of it, children included, and remove its traces. Raises TimedOut for a process stuck in the kernel."""
        try:
            await to_thread.run_sync(self._kill_everyone)
            if self._added and not self._deleted:
                with contextlib.suppress(ShimGone):  # then its containers are ended as a whole
                    await self._end()
        finally:
            if self._bridge is not None:
                self._bridge.close()
            await to_thread.run_sync(lambda: self._mark.unlink(missing_ok=True))

    async def _end(self) -> None:
        seen = self._runtime.settings.own_cgroups
        timeout = self._runtime.settings.timeouts.kill if seen else _GUEST_SECONDS
        await self.kill(signal.SIGKILL)
        if self._pid:
            with anyio.move_on_after(timeout) as scope, contextlib.suppress(NotFound):
                await self._task.wait(self._spec.id)
            if scope.cancelled_caught and not seen:
                _logger.info("an exec was killed, but what it forked goes on in the guest, where only its container's end reaches it")
            elif scope.cancelled_caught:
                raise TimedOut(f"process {self._pid} of an exec did not end within {timeout:g} s of SIGKILL")
        await self._free()

    async def _free(self) -> None:
        with contextlib.suppress(NotFound):
            await self._task.delete(self._spec.id, timeout=self._runtime.settings.timeouts.delete)
        self._deleted = True

    def _kill_everyone(self) -> None:
        timeout = self._runtime.settings.timeouts.kill
        for directory in self._directories:
            cgroup_kill.kill_all(directory, timeout=timeout)
            cgroups.remove_directory(directory)
        if self._container is None:
            return
        deadline = time.monotonic() + timeout
        # Again until nobody is left: one that was found may have forked before its end.
        while found := process_tags.find(_members(self._container), self._tag):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimedOut(f"{len(found)} processes of an exec did not end within {timeout:g} s of SIGKILL")
            time.sleep(_SWEEP_SECONDS)

    async def end_orphan(self, cgroup: str | None) -> None:
        """``delete`` one of which nothing is known but its file."""
        self._added = True
        self._tag = int(await to_thread.run_sync(self._mark.read_text) or 0)
        with contextlib.suppress(BridgeError):  # the container has ended, and this with it
            await to_thread.run_sync(self._prepare, cgroup)
        await self._delete_logged()

    async def _delete_logged(self) -> None:
        try:
            await self.delete()
        except BridgeError as exc:
            _logger.warning("what is left of a failed exec can't be removed: %s", exc)


def _members(directory: Path) -> list[int]:
    try:
        return cgroups.pids(directory)
    except HostError:  # the container has ended
        return []


async def end_orphans(runtime: ShimRuntime, task: ShimTask, bundle: Path, cgroup: str | None) -> None:
    """End the execs that a lost server had in a container: their callers are gone. Raises ShimGone."""
    for mark in await to_thread.run_sync(lambda: sorted(bundle.glob(f"{_PREFIX}*"))):
        orphan = ShimExec(runtime, task, ExecSpec(mark.name.removeprefix(_PREFIX), {}), bundle)
        await orphan.end_orphan(cgroup)
