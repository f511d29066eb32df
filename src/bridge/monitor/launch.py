"""Starting containers and execs: the verb with its descriptors, then the task that holds what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import os

from bridge import log
from bridge.errors import HostError
from bridge.host.console import ConsoleListener
from bridge.host.null_device import open_null
from bridge.monitor.container import ContainerStdio
from bridge.monitor.logs import Clock, LogFile
from bridge.monitor.parameters import Descriptors, Launch
from bridge.monitor.protocol import LaunchFailed
from bridge.monitor.reaper import Reaper
from bridge.monitor.tasks import Task, Tasks, open_pidfd
from bridge.monitor.verb import clean_up, run_verb, tail

_logger = log.get("monitor.launch")


class Plumbing:
    """The descriptors of one launch: the far ends go to the verb, the near ends to ContainerStdio or to the error report.

    Without a terminal the pipes are the container's. With one, only the runtime's own stderr is piped, and the container's pty comes
    through the console socket.
    """

    def __init__(self, launch: Launch, null: int, clock: Clock) -> None:
        self._launch = launch
        self._near: dict[str, int] = {}
        self._far: dict[str, int] = {}
        self._null = null
        self._console: ConsoleListener | None = None
        self._log: LogFile | None = None
        try:
            if launch.log_path is not None:
                self._log = LogFile(launch.log_path, clock)
            if launch.terminal:
                assert launch.console_socket is not None
                self._console = ConsoleListener(launch.console_socket)
            else:
                self._near["stdout"], self._far["stdout"] = os.pipe()
                if launch.stdin:
                    self._far["stdin"], self._near["stdin"] = os.pipe()
            self._near["stderr"], self._far["stderr"] = os.pipe()
            if launch.before:
                self._near["first"], self._far["first"] = os.pipe()
                os.set_blocking(self._near["first"], False)
            if launch.owner is not None:
                for end in self._far.values():
                    os.fchown(end, *launch.owner)
            os.set_blocking(self._near["stderr"], False)
        except BaseException:
            self.close()
            raise

    def far(self, name: str) -> int:
        """The verb's descriptor for stdin, stdout or stderr; ``first``: what the verbs before it write to."""
        return self._far.get(name, self._far["stderr"] if name == "stdout" else self._null)

    def tail(self) -> tuple[str, ...]:
        """What the failed verb said on stderr."""
        return tail(self._near["stderr"]) or (tail(self._near["first"]) if "first" in self._near else ())

    def connect(self) -> ContainerStdio:
        """The running container's stdio, which owns the near ends and the log from now on. Raises LaunchFailed without a pty."""
        launch, near = self._launch, self._near
        if self._console is None:
            streams = {"stdout": near.pop("stdout"), "stderr": near.pop("stderr")}
            stdin = near.pop("stdin", None)
        else:
            try:
                master = self._console.take_master()
            except HostError as exc:
                raise LaunchFailed(0, [exc.message]) from exc
            streams = {"stdout": master}
            stdin = os.dup(master) if launch.stdin else None
        self._log, log_file = None, self._log
        # A terminal is not closed by its client's leaving: the output goes on, and the next client may type (as with peers).
        once = launch.stdin_once and not launch.terminal
        return ContainerStdio(log_file, streams, stdin, terminal=launch.terminal, stdin_once=once)

    def close(self) -> None:
        """Close what is not the container's."""
        for ends in (self._near, self._far):
            while ends:
                os.close(ends.popitem()[1])
        if self._console is not None:
            self._console.close()
        if self._log is not None:
            self._log.close()


class Launcher:
    """Starts tasks. One instance a monitor."""

    def __init__(self, reaper: Reaper, tasks: Tasks) -> None:
        self._reaper = reaper
        self._tasks = tasks
        self._clock = Clock()
        self._null = open_null()

    async def container(self, launch: Launch) -> Task:
        """Launch a container. Raises LaunchFailed with the runtime's last words, HostError; nothing is left of it then."""
        plumbing = Plumbing(launch, self._null, self._clock)
        with self._reaper.hold(), contextlib.closing(plumbing):
            try:
                far = {name: plumbing.far(name) for name in ("stdin", "stdout", "stderr", "first")}
                pid = await run_verb(self._reaper, launch, null=self._null, **far)
                kind = "container" if launch.told_by is None else "told"
                task = self._hold(Task(launch.task, kind, pid, stdio=plumbing.connect(), told_by=launch.told_by))
            except LaunchFailed as exc:
                said = plumbing.tail()
                await clean_up(self._reaper, launch, self._null)
                raise LaunchFailed(exc.exit_code, said or exc.stderr_tail) from exc
            except (HostError, asyncio.CancelledError):
                await clean_up(self._reaper, launch, self._null)
                raise
        _logger.debug("container %s: pid %d", task.id, task.pid)
        return task

    async def exec(self, launch: Launch, given: Descriptors, owner: object) -> Task:
        """Launch an exec whose stdio is ``given`` (/dev/null where None). Raises LaunchFailed without a tail, HostError."""
        stdin, stdout, stderr = (self._null if fd is None else fd for fd in (given.stdin, given.stdout, given.stderr))
        with self._reaper.hold():
            try:
                null = self._null
                pid = await run_verb(self._reaper, launch, stdin=stdin, stdout=stdout, stderr=stderr, first=null, null=null)
                return self._hold(Task(launch.task, "exec", pid, owner=owner))
            except (LaunchFailed, HostError, asyncio.CancelledError):
                await clean_up(self._reaper, launch, self._null)
                raise

    def _hold(self, task: Task) -> Task:
        try:
            if task.told_by is not None:
                task.pidfd = open_pidfd(task.pid)
            self._tasks.add(task)
        except BaseException:
            task.close()
            raise
        return task
