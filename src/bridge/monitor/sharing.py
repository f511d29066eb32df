"""Stdio that outlives this monitor: a server keeps duplicates of every container's pipes and gives them to a successor.

A client that asks to ``share`` gets, for every container that runs and for each that is started from then on, the near ends of its
pipes (or of its terminal) and what a successor must know. As long as somebody holds the reading ends no container dies of a broken
pipe: it waits when the pipe is full, and the successor reads on. What this process had read and not written is lost with it: at most one
read (64 KiB) and one unfinished line (16 KiB) of each stream.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge import log
from bridge.errors import HostError
from bridge.monitor import parameters
from bridge.monitor.container import ContainerStdio
from bridge.monitor.logs import Clock, LogFile
from bridge.monitor.protocol import Message
from bridge.monitor.requests import Connection, Request
from bridge.monitor.tasks import Task, Tasks, open_pidfd, start_ticks

_logger = log.get("monitor.sharing")


class Sharer:
    """The operations ``share`` and ``adopt``. One instance a monitor."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._clock = Clock()
        self._keepers: set[Connection] = set()
        self.operations: dict[str, Callable[[Request], None]] = {"share": self._share, "adopt": self._adopt}
        tasks.on_held = self._held

    def lost(self, connection: Connection) -> None:
        """This client keeps nothing any more."""
        self._keepers.discard(connection)

    def _share(self, request: Request) -> None:
        self._keepers.add(request.connection)
        for task in self._tasks:
            self._give(request.connection, task)
        request.ok()

    def _held(self, task: Task) -> None:
        for keeper in tuple(self._keepers):
            self._give(keeper, task)
        stdin = None if task.stdio is None else task.stdio.hub.stdin
        if stdin is not None:
            # Whoever keeps a duplicate of it keeps the container from seeing the end of its input.
            stdin.on_closed.append(lambda: self._stdin_closed(task.id))

    def _stdin_closed(self, task_id: str) -> None:
        for keeper in tuple(self._keepers):
            keeper.push({"event": "stdin_closed", "task": task_id})

    @staticmethod
    def _give(keeper: Connection, task: Task) -> None:
        if task.kind not in ("container", "told") or task.exit is not None or task.stdio is None:
            return
        ends = task.stdio.ends()
        described = {"event": "held", "task": task.id, "pid": task.pid, "start_ticks": task.ticks, **task.stdio.described()}
        if task.told_by is not None:
            described |= {"exit_argv": list(task.told_by.argv), "cwd": str(task.told_by.cwd), "env": task.told_by.env}
        keeper.push({**described, "fds": list(ends)}, tuple(ends.values()))

    def _adopt(self, request: Request) -> None:
        message = request.message
        task_id = parameters.text(message, "task")
        pid = parameters.integer(message, "pid", 2, 1 << 22)
        ticks = parameters.integer(message, "start_ticks", 0, 1 << 63)
        given = parameters.descriptors(message, request.fds)
        told_by = parameters.wait_command(message)
        task = Task(task_id, "container" if told_by is None else "told", pid, told_by=told_by)
        self._tasks.reserve(task_id)
        try:
            task.pidfd = open_pidfd(pid)
            if task.pidfd is not None and start_ticks(pid) != ticks:  # another process by now
                task.close_pidfd()
            if request.fds:
                task.stdio = self._stdio(message, given)
                request.claim_fds()
            self._tasks.add(task)
        except BaseException:
            task.close()
            raise
        finally:
            self._tasks.settle(task_id)
        request.ok()

    def _stdio(self, message: Message, given: parameters.Descriptors) -> ContainerStdio:
        terminal, once = parameters.flag(message, "terminal"), parameters.flag(message, "stdin_once")
        path = parameters.optional_path(message, "log_path")
        log_file: LogFile | None = None
        if path is not None:
            try:
                log_file = LogFile(path, self._clock)
            except HostError as exc:  # better a container without a log than one that waits for ever for somebody to read
                _logger.error("what %s says from now on is dropped: %s", parameters.text(message, "task"), exc)
        outputs = {name: fd for name, fd in (("stdout", given.stdout), ("stderr", given.stderr)) if fd is not None}
        return ContainerStdio(log_file, outputs, given.stdin, terminal=terminal, stdin_once=once)
