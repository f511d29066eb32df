"""The tasks that the monitor holds: containers and execs, from adoption of their pid to ``forget``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge import log
from bridge.errors import AlreadyExists, HostError, IllegalTransition, InUse, NotFound, Unsupported
from bridge.host import syscalls
from bridge.monitor.container import ContainerStdio
from bridge.monitor.memory import GoneKills, MemoryWatch
from bridge.monitor.parameters import WaitCommand
from bridge.monitor.reaper import OnExit, Reaper, Relation, descends, raw_status
from bridge.monitor.waiting import ExitWaiter
from bridge.ports.runtime import ExitStatus

MONITOR_LOST = "MonitorLost"
"""Reason of an exit whose code nobody could know, because the monitor that should have waited was gone (code 255)."""

_POLL_SECONDS = 0.05
_POLLS = 100
"""A stranger's exit is known only once its parent has reaped it; an init may take seconds to."""

_logger = log.get("monitor.tasks")


class Task:
    """One process and what the monitor knows of it. ``owner`` is the client an exec dies with.

    With ``told_by`` the process is the sandbox's that the container lives in: that command tells its exit, and it can't be signalled.
    """

    __slots__ = (
        "ending",
        "endless",
        "exit",
        "id",
        "kind",
        "memory",
        "owner",
        "pid",
        "pidfd",
        "stdio",
        "ticks",
        "told_by",
        "waiter",
        "waiters",
    )

    def __init__(
        self,
        task_id: str,
        kind: str,
        pid: int,
        *,
        stdio: ContainerStdio | None = None,
        owner: object = None,
        told_by: WaitCommand | None = None,
    ) -> None:
        self.id = task_id
        self.kind = kind
        self.pid = pid
        self.pidfd: int | None = None
        self.stdio = stdio
        self.owner = owner
        self.told_by = told_by
        self.waiter: ExitWaiter | None = None
        self.ending = False
        self.endless = False
        """Whether ``forget`` is its end."""
        self.exit: ExitStatus | None = None
        self.waiters: list[OnExit] = []
        self.memory: MemoryWatch | None = None
        self.ticks = 0
        """When it started (field 22 of /proc/PID/stat), which with the pid names the process for ever."""

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to the whole process group with ``group``. One that has ended is no error. Raises HostError, Unsupported."""
        if self.told_by is not None and self.exit is None:
            raise Unsupported(f"{self.id} lives in a sandbox: its runtime has to signal it")
        if self.exit is not None or self.pidfd is None:
            return
        try:
            if group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass
        except OSError as exc:
            raise HostError(f"can't signal {self.id}: {exc.strerror}", errno=exc.errno) from exc

    def spooled(self) -> dict[str, Any]:
        """What a renewed monitor must know of a spool."""
        raise Unsupported(f"{self.kind} {self.id} is no spool")

    def close(self) -> None:
        """Release the descriptors."""
        if self.waiter is not None:
            self.waiter.close()
        if self.stdio is not None:
            self.stdio.close()
        self.close_pidfd()

    def close_pidfd(self) -> None:
        """Release the pidfd once the process has been reaped."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class Tasks:
    """All tasks by id. ``on_exit`` is called with each task once, after its output was logged and before its waiters."""

    def __init__(self, reaper: Reaper, on_exit: Callable[[Task], None]) -> None:
        self._reaper = reaper
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[str, Task] = {}
        self._gone_kills = GoneKills()
        self.launching: dict[str, list[Callable[[Task | None], None]]] = {}
        """Ids being launched, each with who waits for the outcome (None: the launch failed)."""
        self.on_held: Callable[[Task], None] = lambda _task: None
        """Told of each task that has a process, when it is held."""

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)

    def named(self, task_id: str) -> list[Task]:
        """That task, or none."""
        return [self._tasks[task_id]] if task_id in self._tasks else []

    def get(self, task_id: str) -> Task:
        """Raises NotFound, or IllegalTransition while it is being launched."""
        task = self._tasks.get(task_id)
        if task is None:
            if task_id in self.launching:
                raise IllegalTransition(f"task {task_id} is still being launched")
            raise NotFound(f"the monitor has no task {task_id}")
        return task

    def reserve(self, task_id: str) -> None:
        """Claim an id for a launch. Raises AlreadyExists."""
        if task_id in self._tasks or task_id in self.launching:
            raise AlreadyExists(f"the monitor already has a task {task_id}")
        self.launching[task_id] = []

    def settle(self, task_id: str) -> None:
        """The launch of ``task_id`` is over, with ``add`` or without."""
        for on_outcome in self.launching.pop(task_id):
            on_outcome(self._tasks.get(task_id))

    def add(self, task: Task) -> None:
        """Hold ``task`` and report its exit, also one that happened before. A stranger's pidfd must be open already.

        Raises HostError, and holds nothing then, when no pidfd can be had.
        """
        task.ticks = start_ticks(task.pid) or 0
        if task.told_by is not None:
            self._add_told(task, task.told_by)
        else:
            self._add_process(task)
        self.on_held(task)

    def _add_process(self, task: Task) -> None:
        if task.pidfd is None and (self._reaper.is_child(task.pid) or descends(task.pid)):
            task.pidfd = open_pidfd(task.pid)
        self._tasks[task.id] = task
        if task.kind == "container" and task.pidfd is not None:
            task.memory = MemoryWatch.of(task.pid, self._gone_kills)
        if self._reaper.watch(task.pid, lambda status: self._ended(task, status)) in (Relation.STRANGER, Relation.DESCENDANT):
            self._watch_stranger(task)

    def _add_told(self, task: Task, command: WaitCommand) -> None:
        self._tasks[task.id] = task
        if task.pidfd is not None:
            task.memory = MemoryWatch.of(task.pid, self._gone_kills)
        task.waiter = ExitWaiter(self._reaper, command, task.pidfd, lambda status: self._ended(task, status))

    def keep(self, task: Task) -> None:
        """Hold ``task``, which has no process to watch: ``end`` tells its exit."""
        self._tasks[task.id] = task

    def end(self, task: Task, status: ExitStatus, drain: float) -> None:
        """A kept task has ended with ``status``: report it when its output has ended too, at most ``drain`` seconds from now."""
        if task.ending:
            return
        task.ending = True
        assert task.stdio is not None
        task.stdio.drain_to_end(lambda: self._report(task, status), drain)

    def forget(self, task_id: str) -> None:
        """Release an ended task; an absent one is no error. Raises InUse while it runs."""
        task = self._tasks.get(task_id)
        if task_id in self.launching or (task is not None and task.exit is None and not task.endless):
            raise InUse(f"task {task_id} has not ended")
        if task is not None:
            del self._tasks[task_id]
            task.close()

    def orphan(self, owner: object) -> None:
        """``owner`` is gone: its execs are killed, and forgotten when they have ended."""
        for task in self:
            if task.owner is not owner or owner is None:
                continue
            if task.exit is not None:
                self.forget(task.id)
            else:
                task.waiters.append(lambda _, task_id=task.id: self.forget(task_id))  # type: ignore[misc]
                with contextlib.suppress(HostError):
                    task.kill(signal.SIGKILL, group=True)

    def _ended(self, task: Task, status: ExitStatus) -> None:
        if task.ending:  # a descendant is watched in two ways
            return
        task.ending = True
        if task.pidfd is not None:
            self._loop.remove_reader(task.pidfd)
            task.close_pidfd()
        if task.memory is not None and task.memory.oom_killed(status):
            status = replace(status, oom_killed=True)
        if task.stdio is None:
            self._report(task, status)
        else:
            task.stdio.drain(lambda: self._report(task, status))

    def _report(self, task: Task, status: ExitStatus) -> None:
        task.exit = status
        memory = " (out of memory)" if status.oom_killed else ""
        _logger.debug("%s %s: pid %d ended with code %d%s", task.kind, task.id, task.pid, status.code, memory)
        self._on_exit(task)
        waiters, task.waiters = task.waiters, []
        for waiter in waiters:
            waiter(status)

    def _watch_stranger(self, task: Task) -> None:
        """The process is another's child: its pidfd tells when it ends, and the kernel perhaps how."""
        if task.pidfd is None:
            self._loop.call_soon(self._ended, task, _lost())
            return
        self._loop.add_reader(task.pidfd, self._stranger_ended, task, _POLLS)

    def _stranger_ended(self, task: Task, polls: int) -> None:
        if task.pidfd is None:
            return
        self._loop.remove_reader(task.pidfd)
        wait_status = syscalls.pidfd_exit_code(task.pidfd)
        if wait_status is None and polls and not is_reaped(task.pidfd):
            self._loop.call_later(_POLL_SECONDS, self._stranger_ended, task, polls - 1)
        else:
            self._reaper.forget(task.pid)
            self._ended(task, _lost() if wait_status is None else raw_status(wait_status, time.time_ns()))


def is_reaped(pidfd: int) -> bool:
    """Whether nothing is left of the process, not even a zombie that its parent has yet to wait for."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def _lost() -> ExitStatus:
    return ExitStatus(code=255, at_ns=time.time_ns(), reason=MONITOR_LOST)


def open_pidfd(pid: int) -> int | None:
    """A pidfd, or None when there is no such process any more. Raises HostError."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as exc:
        raise HostError(f"can't open a pidfd of {pid}: {exc.strerror}", errno=exc.errno) from exc


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, which tells a process from a later one of the same pid; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19])
