"""Look at paths of the host that may lie on a dead network mount, without ever waiting longer than a deadline.

A stat on such a mount can hang in the kernel for ever, and a thread that hangs can't be ended. So a child process does
the looking (``bridge.host.lookup_child``): at the deadline it is killed, and where even that does not help it is given up and another one
takes its place. Each child has one question at a time; one that waits long doesn't hold up the others. Children go
when they have been idle for a while, so a node that makes no containers has none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from array import array
from dataclasses import dataclass

import anyio

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import HostError, LimitExceeded, TimedOut, Unavailable
from bridge.host import lookup_child
from bridge.host.attendant import Attendant

_IDLE_SECONDS = 30.0
_PATIENCE = 0.02
"""How long a question waits for a busy child to be free before another child is started: twice what a start takes."""
SPARE_CHILDREN = 2
"""How many children wait for the next question; more than that end at once."""
_MAX_STUCK = 64
_KILL_SECONDS = 1.0
_LAST_WAIT = 2.0
_PATH_MAX = 4096
_DESCRIPTOR = socket.CMSG_SPACE(array("i").itemsize)
_logger = log.get("host.lookups")


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: its name with links followed, its st_mode, and if asked for a descriptor (O_PATH) that the caller closes."""

    path: str
    mode: int
    fd: int | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """``stuck`` are the paths whose children were killed and have not ended; ``given_up`` counts all that outlived a kill by a second."""

    free: int
    busy: int
    stuck: tuple[str, ...]
    given_up: int


class Lookups:
    """See the module docstring. ``supervisor`` owns the children: they end when it does."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._argv = [sys.executable, "-I", "-S", lookup_child.__file__]
        self._free: list[Attendant] = []
        self._busy: dict[Attendant, float] = {}
        self._leaving: dict[Attendant, str] = {}
        self._given_up = 0
        self._freed = anyio.Event()
        self._owned = False
        self._idle_timer: asyncio.TimerHandle | None = None

    def statistics(self) -> Statistics:
        """What Status shows of them."""
        return Statistics(len(self._free), len(self._busy), tuple(self._stuck()), self._given_up)

    async def look(self, path: str, *, timeout: float, make: bool = False, keep: bool = False) -> Found:
        """What is at the absolute ``path``; with ``make`` a directory (0755) is made of what is missing, ``keep`` asks for a descriptor.

        Raises TimedOut after ``timeout`` seconds, and at once while an earlier look at the same path is still stuck;
        HostError with the errno that the look met; LimitExceeded when too many looks are stuck.
        """
        name = os.fsencode(path)
        if b"\0" in name or len(name) >= _PATH_MAX:
            raise HostError(f"{path!r} can't be a path", errno=errno.ENAMETOOLONG)
        self._refuse_known(path)
        question = bytes([lookup_child.MAKE * make + lookup_child.KEEP * keep]) + name
        with anyio.move_on_after(timeout) as scope:
            child = await self._borrow()
            answer = None
            try:
                answer = await _ask(child, question, path)
            finally:
                if answer is None:
                    self._give_up(child, path, missed=scope.cancel_called)
                else:
                    self._give_back(child)
            return _found(path, *answer)
        raise TimedOut(f"{path} did not answer within {timeout:g} s (a dead network mount?)")

    def _stuck(self) -> list[str]:
        for child in [each for each in self._leaving if each.exited.is_set()]:
            del self._leaving[child]
        return [path for path in self._leaving.values() if path]

    def _refuse_known(self, path: str) -> None:
        stuck = self._stuck()
        if path in stuck:
            raise TimedOut(f"{path} does not answer: an earlier look at it is still stuck in the kernel (a dead network mount?)")
        if len(stuck) >= _MAX_STUCK:
            raise LimitExceeded(f"{len(stuck)} looks at paths are stuck in the kernel (dead network mounts?), the last at {stuck[-1]}")

    async def _borrow(self) -> Attendant:
        loop = asyncio.get_running_loop()
        while (child := self._idle_one()) is None:
            if not self._busy or loop.time() - max(self._busy.values()) > _PATIENCE:
                child = self._start()
                break
            with anyio.move_on_after(_PATIENCE):
                await self._freed.wait()
        self._busy[child] = loop.time()
        return child

    def _idle_one(self) -> Attendant | None:
        while self._free:
            child = self._free.pop()
            if not child.exited.is_set():  # else somebody killed it
                return child
            child.dismiss()
        return None

    def _start(self) -> Attendant:
        if not self._owned:
            self._supervisor.spawn("path lookups", self._own)
            self._owned = True
        return Attendant(self._argv)

    def _give_back(self, child: Attendant) -> None:
        del self._busy[child]
        self._free.append(child)
        if len(self._free) > SPARE_CHILDREN:
            self._let_go(self._free.pop(0))
        self._freed.set()
        self._freed = anyio.Event()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._let_all_go)

    def _let_all_go(self) -> None:
        while self._free:
            self._let_go(self._free.pop())

    def _let_go(self, child: Attendant) -> None:
        self._stuck()
        self._leaving[child] = ""
        child.dismiss()

    def _give_up(self, child: Attendant, path: str, *, missed: bool) -> None:
        """Its answer is still out, so it can't serve anyone else. The path is to blame if the deadline was ``missed``, else not yet."""
        del self._busy[child]
        self._leaving[child] = path if missed else ""
        child.kill()
        asyncio.get_running_loop().call_later(_KILL_SECONDS, self._report, child, path)

    def _report(self, child: Attendant, path: str) -> None:
        if not child.exited.is_set():
            self._leaving[child] = path
            self._given_up += 1
            _logger.warning("the process %d that looks at %s is stuck in the kernel: it was killed and is given up", child.pid, path)

    async def _own(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._owned = False  # a late question finds the supervisor closed
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            children = [*self._free, *self._busy, *self._leaving]
            self._free.clear()
            for child in children:
                child.kill()
            with anyio.move_on_after(_LAST_WAIT, shield=True):
                for child in children:
                    await child.exited.wait()
            for child in children:
                child.abandon()


async def _ask(child: Attendant, question: bytes, path: str) -> tuple[bytes, int | None]:
    """The answer as it came, and the descriptor with it."""
    try:
        child.channel.send(question)
        await anyio.wait_readable(child.channel)
        data, ancillary, _, _ = child.channel.recvmsg(2 * _PATH_MAX, _DESCRIPTOR, socket.MSG_CMSG_CLOEXEC)
    except OSError as exc:
        raise HostError(f"the process that looks at {path} was lost: {exc.strerror}", errno=exc.errno) from exc
    if not data:
        raise Unavailable(f"the process that looks at {path} ended early; try again")
    received = array("i")
    for _, _, raw in ancillary:
        received.frombytes(raw)
    return data, received[0] if received else None


def _found(path: str, answer: bytes, fd: int | None) -> Found:
    code, mode, name = answer.split(b" ", 2)
    if int(code):
        raise HostError(f"{path}: {os.strerror(int(code))}", errno=int(code))
    return Found(os.fsdecode(name), int(mode), fd)
