"""Held tasks: stdio without a process, for containers whose parent is a shim. The server tells when they have ended.

A held task outlives the server like any other: its fifos are drained into the log, attach clients are served, and a server that
comes back finds it in ``tasks`` and holds it again, which changes nothing. What is asked twice is answered twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge import log
from bridge.errors import HostError, InvalidRequest
from bridge.monitor import fifos, parameters, protocol
from bridge.monitor.container import ContainerStdio
from bridge.monitor.logs import Clock, LogFile
from bridge.monitor.requests import Request
from bridge.monitor.tasks import Task, Tasks
from bridge.ports.runtime import ExitStatus

HELD = "held"
SPOOL = "spool"
_SPOOL_LIMIT = 128 << 10

_logger = log.get("monitor.holding")


class _Spooling(Task):
    """A fifo kept read. It has no end of its own: forgetting it is its end."""

    __slots__ = ("_spool",)

    def __init__(self, task_id: str, spool: fifos.Spool) -> None:
        super().__init__(task_id, SPOOL, 0)
        self.endless = True
        self._spool = spool
        asyncio.get_running_loop().add_reader(spool.fileno(), spool.readable)

    def spooled(self) -> dict[str, Any]:
        """Its fifo, and the path of its file."""
        return {"fifo": self._spool.fileno(), "path": str(self._spool.path)}

    def close(self) -> None:
        """Let go, and tell who waited."""
        self.exit = ExitStatus(0)
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter(self.exit)
        asyncio.get_running_loop().remove_reader(self._spool.fileno())
        self._spool.close()


class Holder:
    """The operations on held tasks and spools. One instance a monitor."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._clock = Clock()
        self.operations: dict[str, Callable[[Request], None]] = {
            "hold": self._hold,
            "ended": self._ended,
            "stdin_closed": self._stdin_closed,
            "spool": self._spool,
        }

    def _hold(self, request: Request) -> None:
        task_id = parameters.text(request.message, "task")
        if not self._has(task_id, HELD):
            self._add(task_id, lambda: Task(task_id, HELD, 0, stdio=self._stdio(request.message)))
        request.ok()

    def _has(self, task_id: str, kind: str) -> bool:
        return any(task.id == task_id and task.kind == kind for task in self._tasks)

    def _add(self, task_id: str, make: Callable[[], Task]) -> None:
        self._tasks.reserve(task_id)
        try:
            self._tasks.keep(make())
        finally:
            self._tasks.settle(task_id)

    def _stdio(self, message: protocol.Message) -> ContainerStdio:
        terminal, once = parameters.flag(message, "terminal"), parameters.flag(message, "stdin_once")
        directory, path = parameters.path(message, "directory"), parameters.optional_path(message, "log_path")
        stdin, owner = parameters.flag(message, "stdin"), parameters.owner(message)
        log_file = None if path is None else LogFile(path, self._clock)
        try:
            ends = fifos.open_all(directory, terminal=terminal, stdin=stdin, owner=owner)
        except BaseException:
            if log_file is not None:
                log_file.close()
            raise
        return ContainerStdio(log_file, ends.outputs, ends.stdin, terminal=terminal, stdin_once=once and not terminal)

    def respool(self, task_id: str, fifo: int, path: Path) -> None:
        """Go on with the spool of the monitor before."""
        self._add(task_id, lambda: _Spooling(task_id, fifos.Spool(fifo, path, _SPOOL_LIMIT)))

    def _ended(self, request: Request) -> None:
        task = self._held(request)
        wire = request.message.get("exit")
        if not isinstance(wire, dict):
            raise InvalidRequest("must be an object", field="exit")
        drain = parameters.seconds(request.message, "drain")
        self._tasks.end(task, protocol.exit_from_wire(wire), drain)
        if task.exit is not None:
            request.ok()
            return

        def drained(_: ExitStatus) -> None:
            request.ok()

        task.waiters.append(drained)
        request.on_cancel = request.on_lost = lambda: task.waiters.remove(drained) if drained in task.waiters else None

    def _held(self, request: Request) -> Task:
        task = self._tasks.get(parameters.text(request.message, "task"))
        if task.kind != HELD:
            raise InvalidRequest(f"{task.kind} {task.id} is not held for anyone", field="task")
        return task

    def _stdin_closed(self, request: Request) -> None:
        task = self._held(request)
        stdin = None if task.stdio is None else task.stdio.hub.stdin
        if stdin is None or stdin.closed:
            request.ok()
            return
        stdin.on_closed.append(request.ok)
        request.on_cancel = request.on_lost = lambda: stdin.on_closed.remove(request.ok) if request.ok in stdin.on_closed else None

    def _spool(self, request: Request) -> None:
        task_id = parameters.text(request.message, "task")
        if not self._has(task_id, SPOOL):
            source, target = parameters.path(request.message, "fifo"), parameters.path(request.message, "path")
            self._add(task_id, lambda: _Spooling(task_id, _open_spool(source, target)))
        request.ok()


def _open_spool(source: Path, target: Path) -> fifos.Spool:
    try:
        return fifos.Spool(fifos.open_one(source), target, _SPOOL_LIMIT)
    except OSError as exc:
        raise HostError(f"can't make fifo {source}: {exc.strerror}", errno=exc.errno) from exc
