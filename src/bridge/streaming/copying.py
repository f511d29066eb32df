"""Bytes between channels and descriptors: pipes, pty masters, sockets, all non-blocking.

A piece at a time and nothing kept: what a client has no room for is not read, so it stays in the pipe and holds its writer. Pieces are
of 64 KiB until one was full; then much is on its way, and larger ones, from larger pipes, cost less.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable

import anyio
import anyio.lowlevel

from bridge.streaming.channels import Channel

PIECE = 64 << 10
LARGE_PIECE = 256 << 10


def _nothing() -> None:
    """Nothing is to be done."""


class _Nowhere:
    """A channel that nobody reads: a terminal's output must be read even if the client wants none, or its writer blocks."""

    has_news = True

    async def read(self) -> bytes:
        """Nothing comes."""
        return b""

    async def write(self, data: bytes) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing to close."""


NOWHERE = _Nowhere()


class Idle:
    """Ends ``scope`` when nothing was ``touch``ed for ``seconds``. A touch costs a look at the clock, hardly ever a timer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._grain = seconds / 64
        self._touched = anyio.current_time()
        self.scope = anyio.CancelScope(deadline=self._touched + seconds)

    def touch(self) -> None:
        """Something was copied."""
        now = anyio.current_time()
        if now - self._touched >= self._grain:
            self._touched = now
            self.scope.deadline = now + self.seconds


class Drain:
    """How long output is awaited once the process that made it has ended.

    What was in a pipe at the exit is read in any case, however slow the client. Others who still hold the pipe are read until they
    close it, for ``seconds`` at most: a daemon left behind must not keep the exit code from the client.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: set[anyio.CancelScope] = set()
        self.deadline = math.inf

    def start(self) -> None:
        """The process has ended."""
        self.deadline = anyio.current_time() + self._seconds
        for scope in self._waiting:
            scope.deadline = self.deadline

    @property
    def is_over(self) -> bool:
        """Whether nobody's output is awaited any more."""
        return anyio.current_time() >= self.deadline

    async def readable(self, descriptor: int) -> bool:
        """Wait until there is something to read, or the end of it; False when that takes too long."""
        with anyio.CancelScope(deadline=self.deadline) as scope:
            self._waiting.add(scope)
            try:
                await anyio.wait_readable(descriptor)
                return True
            finally:
                self._waiting.discard(scope)
        return False


async def from_process(descriptor: int, channel: Channel, drain: Drain, idle: Idle) -> None:
    """Copy a process's output until its end, or until ``drain`` is over. Raises ConnectionLost."""
    left: float = math.inf
    room = PIECE
    while True:
        data = _read(descriptor, room)
        if data is None:
            if not await drain.readable(descriptor):
                return
            continue
        if not data:
            return
        if len(data) == room < LARGE_PIECE:
            room = LARGE_PIECE
            _enlarge(descriptor)
        if drain.deadline < math.inf:
            left = min(left, max(_capacity(descriptor), PIECE)) - len(data)
        idle.touch()
        await channel.write(data)
        if left <= 0 and drain.is_over:
            return
        await anyio.lowlevel.checkpoint()


async def from_descriptor(descriptor: int, channel: Channel, idle: Idle) -> None:
    """Copy until the other side has closed. Raises ConnectionLost."""
    room = PIECE
    while True:
        data = _read(descriptor, room)
        if data is None:
            await anyio.wait_readable(descriptor)
            continue
        if not data:
            return
        is_all = len(data) < room
        if not is_all:
            room = LARGE_PIECE
        idle.touch()
        await channel.write(data)
        if is_all:
            await anyio.wait_readable(descriptor)
        else:
            await anyio.lowlevel.checkpoint()


async def to_descriptor(channel: Channel, descriptor: int, idle: Idle, before_waiting: Callable[[], None] = _nothing) -> bool:
    """Copy until the client has closed its half; False when the other side takes no more. Raises ConnectionLost.

    ``before_waiting`` is called each time that either side isn't ready.
    """
    while True:
        if not channel.has_news:
            before_waiting()
        if not (data := await channel.read()):
            return True
        idle.touch()
        if not await _write(descriptor, data, before_waiting):
            return False


async def discard(channel: Channel) -> None:
    """Read to the end what nobody wants, for what is not read would hold up the client's other channels. Raises ConnectionLost."""
    while await channel.read():
        await anyio.lowlevel.checkpoint()


def _read(descriptor: int, room: int) -> bytes | None:
    """What is there: None when nothing is, empty at the end."""
    try:
        return os.read(descriptor, room)
    except BlockingIOError:
        return None
    except OSError:  # EIO: the other side of a pty is closed; ECONNRESET: a socket's is gone
        return b""


async def _write(descriptor: int, data: bytes, before_waiting: Callable[[], None]) -> bool:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            if len(data) > PIECE and _enlarge(descriptor):
                continue
            before_waiting()
            await anyio.wait_writable(descriptor)
        except OSError:  # EPIPE, ECONNRESET, and EIO of a pty
            return False
    return True


def _capacity(descriptor: int) -> int:
    """How much a pipe can hold; 0 for what is none."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 0


def _enlarge(descriptor: int) -> bool:
    """Let a pipe hold a large piece; False when it does so already, may not, or is none."""
    if not 0 < _capacity(descriptor) < LARGE_PIECE:
        return False
    try:
        return fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, LARGE_PIECE) >= LARGE_PIECE
    except OSError:  # pipe(7): the bounds of /proc/sys/fs/pipe-*
        return False
