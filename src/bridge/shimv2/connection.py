"""One ttrpc connection on the running asyncio loop, for either side: a connected socket that gives and takes frames.

Callback style, without a task: a server holds one of these for every pod behind a shim, mostly idle for days.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from bridge.errors import BridgeError, LimitExceeded
from bridge.shimv2.frames import Decoder, Frame, Oversized, encode

_CHUNK: Final = 65536
_BACKLOG_LIMIT: Final = 16 << 20
"""Bytes that may wait for a peer that doesn't read; beyond it the connection is given up."""


class Connection:
    """Sends and receives frames on ``sock``, which it owns.

    ``on_frame`` gets each frame, or the header of one that was too long. ``on_lost`` is called once, with why (None: the peer, or
    this side, closed it in order).
    """

    def __init__(
        self, sock: socket.socket, on_frame: Callable[[Frame | Oversized], None], on_lost: Callable[[BaseException | None], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._on_frame = on_frame
        self._on_lost = on_lost
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        """Send a frame: now what the socket takes, the rest when it can. Nothing happens on a closed connection.

        Raises LimitExceeded, having sent nothing, when ``data`` is too long.
        """
        frame = encode(stream, kind, flags, data)
        if self.closed:
            return
        self._queue.append(memoryview(frame))
        self._queued += len(frame)
        if len(self._queue) == 1:
            self._writable()
        elif self._queued > _BACKLOG_LIMIT:
            self.close(LimitExceeded("the peer does not read what it is sent"))

    def _writable(self) -> None:
        try:
            while self._queue:
                sent = self._sock.send(self._queue[0])
                self._queued -= sent
                if sent == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][sent:]
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        except OSError as exc:
            self.close(exc)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.close(exc)
            return
        try:
            if not data:
                self._decoder.end()
            frames = self._decoder.feed(data)
        except BridgeError as exc:
            self.close(exc)
            return
        if not data:
            self.close(None)
            return
        for frame in frames:
            if not self.closed:
                self._on_frame(frame)

    def close(self, why: BaseException | None = None) -> None:
        """Close the socket and drop what was queued; ``on_lost`` is called with ``why``. Closing twice does nothing."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._queue.clear()
        self._on_lost(why)
