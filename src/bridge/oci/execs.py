"""One exec in a container: a single ``exec --detach`` through the monitor, in a sub-cgroup of its own.

The sub-cgroup is what makes ``delete`` complete: everything that the process forked, daemons included, is in it, whatever
sessions and groups they made (kubernetes#124226). On v2 it is a child of the container's cgroup; on v1 a child in the freezer
hierarchy suffices, so that limits and accounts stay the container's. A runtime without ``exec --cgroup`` gets its process
moved right after the start: what it forked before that is missed, and ends with the container.
"""

from __future__ import annotations

import contextlib
import errno
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from bridge import log
from bridge.errors import BridgeError, HostError, IllegalTransition, MonitorGone, NotFound, TimedOut
from bridge.host import cgroup_kill, cgroups, oom_score
from bridge.host.oci_documents import write_json
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.dialect import ExecCgroup, flag, switch
from bridge.oci.runtime import OciRuntime
from bridge.ports.runtime import ExecSpec, ExitStatus

_logger = log.get("oci.exec")
_FREEZER = "freezer"
_OURS = re.compile("exec-[0-9a-f]{32}")  # what is made below a container's cgroup may be the container's own, too


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one exec, in the container's bundle."""

    process: Path
    pid: Path
    log: Path

    def remove(self) -> None:
        for path in (self.process, self.pid, self.log):
            path.unlink(missing_ok=True)


class OciExec:
    """A running exec (bridge.ports.runtime.ExecProcess). Made by ``start`` alone."""

    def __init__(self, runtime: OciRuntime, spec: ExecSpec, bundle: Path) -> None:
        self._runtime = runtime
        self._spec = spec
        self._bundle = bundle
        stem = bundle / f"exec-{spec.id}"
        self._files = _Files(stem.with_suffix(".json"), stem.with_suffix(".pid"), stem.with_suffix(".log"))
        self._directories: tuple[Path, ...] = ()
        self._pid = 0
        self._ended = False

    @property
    def pid(self) -> int:
        """Host pid."""
        return self._pid

    async def start(self, container_id: str, container_cgroup: str | None) -> None:
        """Run it. Raises RuntimeFailed, IllegalTransition when the container is gone; then nothing of it is left."""
        try:
            await to_thread.run_sync(self._prepare, container_cgroup)
            self._pid = await self._launch(container_id)
            await self._confine()
            await self._give_score()
        except BaseException:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self._runtime.cli.settings.timeouts.kill):
                await self._delete_logged()
            raise

    def _prepare(self, container_cgroup: str | None) -> None:
        write_json(self._files.process, self._spec.process)
        if container_cgroup is None:
            return
        everywhere = cgroups.is_v2() or self._runtime.exec_cgroup is ExecCgroup.PATH
        try:
            self._directories = cgroups.create_child(container_cgroup, f"exec-{self._spec.id}", controller=None if everywhere else _FREEZER)
        except HostError as exc:
            if exc.errno == errno.ENOENT:
                raise IllegalTransition("the container's cgroup is gone: it has ended") from exc
            raise

    async def _launch(self, container_id: str) -> int:
        spec, files = self._spec, self._files
        cli = self._runtime.cli
        words = cli.dialect.flags
        flags = [*switch(words.detach), *flag(words.process, files.process), *flag(words.pid_file, files.pid), *self._cgroup_flags()]
        if spec.console is not None:
            flags += flag(words.console, spec.console)
        monitor = await self._runtime.present()
        launch = partial(
            monitor.exec,
            spec.id,
            cli.argv("exec", *flags, container_id, log=files.log),
            cwd=self._bundle,
            pid_file=files.pid,
            stdin=spec.stdin,
            stdout=spec.stdout,
            stderr=spec.stderr,
            env=cli.settings.env,
            timeout=cli.settings.timeouts.exec,
        )
        try:
            return await self._runtime.launched(launch)
        except LaunchFailed as exc:
            raise await self._runtime.failure("exec", exc, files.log) from exc

    def _cgroup_flags(self) -> list[str]:
        if not self._directories or self._runtime.exec_cgroup is ExecCgroup.NONE:
            return []
        name = self._directories[0].name
        by_controller = self._runtime.exec_cgroup is ExecCgroup.CONTROLLER and not cgroups.is_v2()
        return flag(self._runtime.cli.dialect.flags.cgroup, f"{_FREEZER}:{name}" if by_controller else name)

    async def _confine(self) -> None:
        """Verify that it is in its sub-cgroup, else move it there: a runtime's word for it is not enough to promise a clean kill."""
        if not self._directories:
            return
        try:
            where = set(cgroups.of_pid(self._pid).values())
        except HostError as exc:
            if exc.errno == errno.ESRCH:
                return
            raise
        for directory in self._directories:
            if directory not in where:
                await to_thread.run_sync(cgroups.move, self._pid, directory)

    async def _give_score(self) -> None:
        """See that it has its container's OOM score: crun leaves it the monitor's, with which it would outlive all else of the node."""
        score = self._spec.process.get("oomScoreAdj")
        if score is None or not self._directories or oom_score.of(self._pid) in (score, None):
            return
        try:
            await to_thread.run_sync(oom_score.give_all, self._directories, score)
        except HostError as exc:
            _logger.warning("an exec keeps another OOM score than its container's: %s", exc)

    async def wait(self) -> ExitStatus:
        """Its exit. NotFound once deleted."""
        status = await self._runtime.monitor.wait(self._spec.id)
        self._ended = True
        return status

    async def kill(self, signal: int) -> None:
        """Signal the process itself; ended is success."""
        with contextlib.suppress(NotFound):
            await self._runtime.monitor.kill(self._spec.id, signal)

    async def delete(self) -> None:
        """Kill whatever is left of it, children included, and remove its traces. Raises TimedOut for a process stuck in the kernel."""
        try:
            if self._directories:
                await to_thread.run_sync(self._remove_cgroup)
            else:
                await self.kill(9)
            # A monitor kills and forgets the execs of a lost connection itself; it does not know one that could not be launched.
            with contextlib.suppress(MonitorGone, NotFound):
                await self._forget()
        finally:
            # Last: a runtime that was cancelled while it started may make its log until the monitor has ended it.
            await to_thread.run_sync(self._files.remove)

    async def _forget(self) -> None:
        timeout = self._runtime.cli.settings.timeouts.kill
        if not self._ended:
            with anyio.move_on_after(timeout) as scope:
                await self.wait()
            if scope.cancelled_caught:
                raise TimedOut(f"process {self._pid} of an exec did not end within {timeout:g} s of SIGKILL")
        await self._runtime.monitor.forget(self._spec.id)

    def _remove_cgroup(self) -> None:
        timeout = self._runtime.cli.settings.timeouts.kill
        for directory in sorted(self._directories, key=lambda d: _FREEZER not in d.parts):  # the freezer's kill is the thorough one
            cgroup_kill.kill_all(directory, timeout=timeout)
            cgroups.remove_directory(directory)

    async def _delete_logged(self) -> None:
        try:
            await self.delete()
        except BridgeError as exc:
            _logger.warning("what is left of a failed exec can't be removed: %s", exc)


async def end_orphans(cgroup: str | None, timeout: float) -> None:
    """End all that execs of a lost server left in a container: their callers are gone, and that server may have frozen them to kill them.

    What does not end is logged: it must not keep the container from being taken over.
    """
    if cgroup is None:
        return
    try:
        await to_thread.run_sync(_end_orphans, cgroup, timeout)
    except BridgeError as exc:
        _logger.warning("what an earlier server executed in %s is left: %s", cgroup, exc)


def _end_orphans(cgroup: str, timeout: float) -> None:
    mounts = cgroups.layout().mounts
    killing = mounts.get("" if cgroups.is_v2() else _FREEZER)
    if killing is None:
        return
    names = [child.name for child in cgroups.children(killing.directory(cgroup)) if _OURS.fullmatch(child.name)]
    for name in names:
        cgroup_kill.kill_all(killing.directory(cgroup) / name, timeout=timeout)
        for directory in cgroups.layout().directories(f"{cgroup}/{name}"):
            cgroups.remove_directory(directory)
