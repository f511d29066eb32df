"""A TCP or TLS connection as a Wire: bounded both ways, closed without losing what was sent last.

Reading stops while a piece waits to be taken, writing waits above HIGH_WATER, so the kernel's buffers slow the client down and
nothing here grows. Where reading has stopped, the end of the connection would go unseen (a command that does not read its
input, and a client that is gone): then the kernel is asked now and again whether the client is still there.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

import anyio

from bridge.streaming.channels import ConnectionLost

PIECE = 256 << 10
HIGH_WATER = 256 << 10
LINGER_SECONDS = 5.0
"""How long a client may take, once all was said, to read it and to hang up."""
_LOOK_SECONDS = 2.0
_TCP_ESTABLISHED = 1

_arriving = bytearray(PIECE)  # one for all connections: filled and copied from without anything between


class SocketWire(asyncio.BufferedProtocol):
    """See the module docstring (bridge.streaming.transport.Wire). ``on_lost`` is called once, when the client is gone."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._came: deque[bytes] = deque()
        self._unread = 0
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._over = asyncio.Event()
        self._ended = False
        self._closing = False
        self._looking: asyncio.TimerHandle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._writable.set()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's
        return _arriving

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        self._came.append(bytes(memoryview(_arriving)[:nbytes]))
        self._unread += nbytes
        self._news.set()
        if self._unread >= PIECE and self._transport is not None:
            self._transport.pause_reading()
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_SECONDS, self._look)

    def eof_received(self) -> None:
        """The client hangs up: no client of these protocols closes one half only."""
        self._ended = True
        self._news.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._ended = True
        for event in (self._news, self._writable, self._over):
            event.set()
        if self._looking is not None:
            self._looking.cancel()
        self._on_lost()

    def put_back(self, data: bytes) -> None:
        """Have ``data`` received (again) before anything else."""
        if data:
            self._came.appendleft(data)
            self._unread += len(data)
            self._news.set()

    # Wire

    async def receive(self) -> bytes:
        """See Wire. Always lets others have their turn, so that a client which sends without end can't keep the loop to itself."""
        if self._came:
            await asyncio.sleep(0)
        while not self._came:
            if self._ended:
                return b""
            self._news.clear()
            await self._news.wait()
        piece = self._came.popleft()
        self._unread -= len(piece)
        if not self._came and not self._ended and self._transport is not None:
            self._transport.resume_reading()
        return piece

    async def send(self, data: bytes) -> None:
        """See Wire."""
        if self._over.is_set() or self._closing or self._transport is None:
            raise ConnectionLost("the client's connection is gone")
        self._transport.write(data)
        while not self._writable.is_set():
            await self._writable.wait()
        if self._over.is_set():
            raise ConnectionLost("the client's connection is gone")

    async def close(self) -> None:
        """Let the client have what was written, then hang up. At most LINGER_SECONDS.

        A socket that is closed with something unread resets the connection, and the client would lose what it has not read
        yet. So our half is closed first, and what the client still sends is taken until it closes its own.
        """
        if self._transport is None or self._closing:
            return
        self._closing = True
        self._came.clear()
        self._unread = 0
        try:
            with anyio.move_on_after(LINGER_SECONDS):
                self._transport.resume_reading()
                if self._transport.can_write_eof() and not self._transport.is_closing():
                    self._transport.write_eof()
                else:
                    self._transport.close()
                await self._over.wait()
        except OSError:
            pass  # the client has reset it, and the loop has not seen so yet
        finally:
            self._transport.abort()

    def hang_up(self) -> None:
        """Hang up without waiting for the client: it gets what the kernel has taken by now."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
            self._transport.abort()

    def abort(self) -> None:
        """Hang up at once; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def _look(self) -> None:
        """Nobody reads: see whether the client has hung up meanwhile."""
        self._looking = None
        if not self._came or self._ended or self._transport is None:
            return
        if _established(self._transport.get_extra_info("socket")):
            self._looking = self._loop.call_later(_LOOK_SECONDS, self._look)
        else:
            self._ended = True
            self._on_lost()


def _established(sock: socket.socket) -> bool:
    """Whether neither side has closed its half: tcp_info begins with the state (tcp(7))."""
    try:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == struct.pack("B", _TCP_ESTABLISHED))
    except OSError:
        return False
