"""Reaps every child of the monitor: runtimes it spawned, containers they left to it (it is the subreaper), and strays.

A container may die before the runtime verb that made it returns, and so before anyone asked for its exit. While a launch holds
the reaper, exits that nobody watches are therefore kept. Only this class reaps, so an unreaped pid is never reused and signals
to it are safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from enum import Enum

from bridge.ports.runtime import ExitStatus

_BATCH = 256
"""Children reaped per wake-up; a storm of dying strays must not keep the loop from its clients."""
_KEPT = 4096
"""Unclaimed exits kept while a launch is pending; the oldest go first."""

_GENERATIONS = 8
"""How far up a process's ancestors are followed; a runtime forks two or three times."""

OnExit = Callable[[ExitStatus], None]


def status(code: int, number: int, at_ns: int) -> ExitStatus:
    """An ExitStatus from waitid's si_code and si_status."""
    if code == os.CLD_EXITED:
        return ExitStatus(code=number, at_ns=at_ns)
    return ExitStatus(code=128 + number, signal=number, at_ns=at_ns)


def raw_status(wait_status: int, at_ns: int) -> ExitStatus:
    """An ExitStatus from a wait(2) status word."""
    if os.WIFSIGNALED(wait_status):
        return status(os.CLD_KILLED, os.WTERMSIG(wait_status), at_ns)
    return status(os.CLD_EXITED, os.WEXITSTATUS(wait_status), at_ns)


class Relation(Enum):
    """What a watched pid is to this process.

    A child not yet reaped, a child reaped before, a descendant that becomes a child when those between have ended, or a stranger.
    """

    CHILD = "child"
    REAPED = "reaped"
    DESCENDANT = "descendant"
    STRANGER = "stranger"


class Reaper:
    """Start it once in the process that owns SIGCHLD; callbacks run in the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, OnExit] = {}
        self._unclaimed: dict[int, ExitStatus] = {}
        self._holds = 0

    def start(self) -> None:
        """Take over SIGCHLD, and reap what may have ended before."""
        self._loop.add_signal_handler(signal.SIGCHLD, self.collect)
        self.collect()

    def stop(self) -> None:
        """Give SIGCHLD back."""
        self._loop.remove_signal_handler(signal.SIGCHLD)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the exits of unwatched children as long as the block runs."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._unclaimed.clear()

    def is_child(self, pid: int) -> bool:
        """Whether ``pid`` is a child of this process that has not been reaped: only then is a signal by number safe."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def watch(self, pid: int, on_exit: OnExit) -> Relation:
        """Call ``on_exit`` once, from the loop, when child ``pid`` ends, or soon if it was reaped under ``hold``.

        A DESCENDANT is told of when this process reaps it, which is never if its own parent does: watch its pidfd as well.
        Nothing is watched of a STRANGER.
        """
        if self.is_child(pid):  # wins over a kept exit: the number may have been reused since
            self._unclaimed.pop(pid, None)
            self._watched[pid] = on_exit
            return Relation.CHILD
        kept = self._unclaimed.pop(pid, None)
        if kept is None and descends(pid):
            self._watched[pid] = on_exit
            return Relation.DESCENDANT
        if kept is None:
            return Relation.STRANGER
        self._loop.call_soon(on_exit, kept)
        return Relation.REAPED

    def forget(self, pid: int) -> None:
        """Watch ``pid`` no more."""
        self._watched.pop(pid, None)

    def exit_of(self, pid: int) -> asyncio.Future[ExitStatus]:
        """The exit of child ``pid``, just spawned by the caller, as a future."""
        ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self.watch(pid, lambda result: None if ended.done() else ended.set_result(result))
        return ended

    def collect(self) -> None:
        """Reap what has ended, at most a batch; the loop comes back for the rest."""
        for _ in range(_BATCH):
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if result is None:
                return
            self._ended(result.si_pid, status(result.si_code, result.si_status, time.time_ns()))
        self._loop.call_soon(self.collect)

    def _ended(self, pid: int, exit_status: ExitStatus) -> None:
        on_exit = self._watched.pop(pid, None)
        if on_exit is not None:
            on_exit(exit_status)
        elif self._holds:
            if len(self._unclaimed) >= _KEPT:
                del self._unclaimed[next(iter(self._unclaimed))]
            self._unclaimed[pid] = exit_status


def descends(pid: int) -> bool:
    """Whether ``pid`` is a descendant of this process.

    crun's verb ends a moment before the process that it had fork the container: only then is the container our child.
    """
    own = os.getpid()
    for _ in range(_GENERATIONS):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            return False
        if pid in (0, 1, own):
            return pid == own
    return False
