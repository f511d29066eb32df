"""What each operation of the protocol does. Quick ones are answered at once; launches and execs are tasks of the monitor's group.

A container's launch goes on when its client is lost, and a new client finds it in ``tasks``; an exec dies with its client. A client
that gives up a request (cancel) ends either.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from bridge import log
from bridge.errors import IllegalTransition, InUse, InvalidRequest, NotFound, Unsupported
from bridge.monitor import parameters, protocol, renewal
from bridge.monitor.container import ContainerStdio
from bridge.monitor.holding import Holder
from bridge.monitor.launch import Launcher
from bridge.monitor.parameters import Launch
from bridge.monitor.program import program
from bridge.monitor.reaper import Reaper
from bridge.monitor.renewal import Standing
from bridge.monitor.requests import Connection, Request
from bridge.monitor.sharing import Sharer
from bridge.monitor.tasks import Task, Tasks
from bridge.ports.runtime import ExitStatus

_logger = log.get("monitor.service")


class Service:
    """The monitor's operations. ``stop`` is called when a client asked for shutdown and nothing speaks against it."""

    def __init__(self, group: asyncio.TaskGroup, reaper: Reaper, stop: Callable[[], None], here: Standing) -> None:
        self._group = group
        self._stop = stop
        self._here = here
        program()  # as it is now: an upgrade may replace the files of a running monitor
        self._connections: set[Connection] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self.tasks = Tasks(reaper, self._push_exit)
        self._launcher = Launcher(reaper, self.tasks)
        self._sharer = Sharer(self.tasks)
        self._operations: dict[str, Callable[[Request], None]] = {
            name: getattr(self, f"_{name}")
            for name in (
                *("hello", "launch", "exec", "wait", "kill", "reopen_log", "resize", "attach", "close_stdin"),
                *("tasks_", "forget", "shutdown", "renew"),
            )
        }
        self._holder = Holder(self.tasks)
        self._operations |= self._holder.operations | self._sharer.operations

    def stands(self, here: Standing) -> None:
        """Its lock and its socket are others from now on."""
        self._here = here

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with what the monitor held that this one was before its renewal."""
        renewal.resume(state, self.tasks, self._holder)

    def connect(self, sock: socket.socket) -> None:
        """Serve a new client."""
        self._connections.add(Connection(sock, self._handle, self._lost))

    def close(self) -> None:
        """Hang up on every client, and end the launches under way and the commands that tell exits."""
        for job in tuple(self._jobs):
            job.cancel()
        for connection in tuple(self._connections):
            connection.close()
        for task in self.tasks:
            if task.waiter is not None:
                task.waiter.close()

    def _handle(self, request: Request) -> None:
        name = str(request.message.get("op"))
        operation = self._operations.get("tasks_" if name == "tasks" else name)
        if operation is None:
            raise InvalidRequest(f"unknown operation {name!r}", field="op")
        operation(request)

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._sharer.lost(connection)
        self.tasks.orphan(connection)

    def _push_exit(self, task: Task) -> None:
        assert task.exit is not None
        event = {"event": "exit", "task": task.id, "exit": protocol.exit_to_wire(task.exit)}
        for connection in tuple(self._connections):
            connection.push(event)

    def _task(self, request: Request) -> Task:
        return self.tasks.get(parameters.text(request.message, "task"))

    def _stdio(self, request: Request) -> ContainerStdio:
        task = self._task(request)
        if task.stdio is None:
            raise Unsupported(f"the monitor does not hold the stdio of {task.kind} {task.id}")
        return task.stdio

    def _hello(self, request: Request) -> None:
        facts = {"pid": os.getpid(), "start_ns": self._here.start_ns, "nofile": self._here.nofile, "program": program()}
        request.ok({"version": protocol.VERSION, "abilities": protocol.ABILITIES, **facts})

    def _launch(self, request: Request) -> None:
        launch = Launch.read(request.message)
        job = self._begin(request, launch, self._launcher.container(launch))
        request.on_cancel = job.cancel

    def _exec(self, request: Request) -> None:
        launch = Launch.read(request.message)
        given = parameters.descriptors(request.message, request.fds)
        job = self._begin(request, launch, self._launcher.exec(launch, given, request.connection))
        request.on_cancel = request.on_lost = job.cancel

    def _begin(self, request: Request, launch: Launch, work: Coroutine[None, None, Task]) -> asyncio.Task[None]:
        try:
            self.tasks.reserve(launch.task)
        except BaseException:
            work.close()
            raise
        fds = request.claim_fds()

        def over(job: asyncio.Task[None]) -> None:  # runs also when the job is cancelled before its first step
            for fd in fds:
                os.close(fd)
            self._jobs.discard(job)
            self.tasks.settle(launch.task)
            work.close()

        job = self._group.create_task(self._answer_launch(request, work), name=f"launch {launch.task}")
        self._jobs.add(job)
        job.add_done_callback(over)
        return job

    @staticmethod
    async def _answer_launch(request: Request, work: Coroutine[None, None, Task]) -> None:
        try:
            task = await work
        except Exception as exc:  # noqa: BLE001 - answered, and logged if unexpected
            request.fail(exc)
        else:
            request.ok({"pid": task.pid})

    def _wait(self, request: Request) -> None:
        task_id = parameters.text(request.message, "task")
        pending = self.tasks.launching.get(task_id)
        if pending is None:
            self._wait_for(request, self.tasks.get(task_id))
            return

        def launched(task: Task | None) -> None:
            if task is None:
                request.fail(NotFound(f"the launch of {task_id} failed"))
            else:
                self._wait_for(request, task)

        pending.append(launched)
        request.on_cancel = request.on_lost = lambda: pending.remove(launched) if launched in pending else None

    @staticmethod
    def _wait_for(request: Request, task: Task) -> None:
        if task.exit is not None:
            request.ok(protocol.exit_to_wire(task.exit))
            return

        def ended(status: ExitStatus) -> None:
            request.ok(protocol.exit_to_wire(status))

        task.waiters.append(ended)
        request.on_cancel = request.on_lost = lambda: task.waiters.remove(ended) if ended in task.waiters else None

    def _kill(self, request: Request) -> None:
        number = parameters.integer(request.message, "signal", 1, signal.NSIG - 1)
        self._task(request).kill(number, group=parameters.flag(request.message, "group"))
        request.ok()

    def _reopen_log(self, request: Request) -> None:
        stdio = self._stdio(request)
        if self._task(request).exit is not None:
            raise IllegalTransition("the container has ended: nothing more is logged")
        if stdio.log is not None:
            stdio.log.reopen()
        request.ok()

    def _resize(self, request: Request) -> None:
        width, height = (parameters.integer(request.message, name, 0, 65535) for name in ("width", "height"))
        self._stdio(request).resize(width, height)
        request.ok()

    def _attach(self, request: Request) -> None:
        given = parameters.descriptors(request.message, request.fds)
        stdio = self._stdio(request)
        if stdio.hub.over:
            raise IllegalTransition("the container's output has ended")
        session = stdio.hub.attach(given, lambda error: request.ok() if error is None else request.fail(error))
        request.claim_fds()
        request.on_cancel = request.on_lost = session.end

    def _close_stdin(self, request: Request) -> None:
        stdin = self._stdio(request).hub.stdin
        if stdin is not None:
            stdin.finish()
        request.ok()

    def _tasks_(self, request: Request) -> None:
        only = request.message.get("task")
        asked = list(self.tasks) if only is None else self.tasks.named(str(only))
        held = {task.id for task in asked}
        launching = [task_id for task_id in self.tasks.launching if task_id not in held and only in (None, task_id)]
        found: list[protocol.Message] = [{"id": task_id, "kind": "container", "pid": 0} for task_id in launching]
        for task in asked:
            wire: protocol.Message = {"id": task.id, "kind": task.kind, "pid": task.pid}
            if task.exit is not None:
                wire["exit"] = protocol.exit_to_wire(task.exit)
            if task.stdio is not None and task.stdio.log is not None:
                wire |= {"log_path": str(task.stdio.log.path), "lost_bytes": task.stdio.log.lost_bytes}
            found.append(wire)
        request.ok(found)

    def _forget(self, request: Request) -> None:
        self.tasks.forget(parameters.text(request.message, "task"))
        request.ok()

    def _renew(self, request: Request) -> None:
        argv = parameters.strings(request.message, "argv")
        env = parameters.environment(request.message) or {}
        _logger.info("renewing this monitor: %s", " ".join(argv))
        renewal.execute(argv, {**os.environ, **env}, self._here, self.tasks)

    def _shutdown(self, request: Request) -> None:
        count = len(self.tasks) + len(self.tasks.launching)
        if count and not parameters.flag(request.message, "force"):
            raise InUse(f"the monitor holds {count} tasks")
        request.ok()
        self._stop()
