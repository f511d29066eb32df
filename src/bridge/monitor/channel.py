"""One connection of the monitor protocol on the running asyncio loop; used by the monitor and by its client.

Callback style, no task: a frame costs no context switch, and an idle connection costs a few hundred bytes. Each readiness event
reads once, so that no peer can keep the loop from the containers' output.
"""

from __future__ import annotations

import asyncio
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridge.errors import BridgeError, LimitExceeded
from bridge.monitor.protocol import MAX_FDS, BadFrame, Decoder, Frame, encode

_CHUNK = 65536
_CONTROL = socket.CMSG_SPACE(16 * array("i").itemsize)
_BACKLOG_LIMIT = 16 << 20
"""Bytes that may wait for a peer that does not read; beyond it the connection is given up."""


class Channel:
    """Sends and receives frames on a connected unix socket, which it owns.

    ``on_frame`` gets each frame and owns its descriptors; ``on_lost`` is called once, with why (None: the peer closed).
    """

    def __init__(self, sock: socket.socket, on_frame: Callable[[Frame], None], on_lost: Callable[[BaseException | None], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._queued = 0
        self._on_frame = on_frame
        self._on_lost = on_lost
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send now what the socket takes, the rest when it can; ``fds`` stay the caller's. Nothing happens on a closed channel."""
        if self.closed:
            return
        data = encode(message, len(fds))
        # Duplicates, so that the caller may close his as soon as this returns.
        self._queue.append((memoryview(data), tuple(os.dup(fd) for fd in fds)))
        self._queued += len(data)
        if len(self._queue) == 1:
            self._writable()
        elif self._queued > _BACKLOG_LIMIT:
            self.close(LimitExceeded("the peer does not read its answers"))

    def _writable(self) -> None:
        try:
            while self._queue:
                data, fds = self._queue[0]
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
                _close_all(fds)
                self._queued -= sent
                if sent == len(data):
                    self._queue.popleft()
                else:
                    self._queue[0] = (data[sent:], ())
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        except OSError as exc:
            self.close(exc)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(_CHUNK, _CONTROL, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.close(exc)
            return
        fds = _received(ancillary)
        if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
            _close_all(fds)
            self.close(BadFrame("too many descriptors"))
            return
        if not data:
            self.close(None)
            return
        self._dispatch(data, fds)

    def _dispatch(self, data: bytes, fds: tuple[int, ...]) -> None:
        try:
            frames = self._decoder.feed(data, fds)
        except BridgeError as exc:
            self.close(exc)
            return
        for frame in frames:
            if self.closed:
                _close_all(frame.fds)
            else:
                self._on_frame(frame)

    def close(self, why: BaseException | None = None) -> None:
        """Close the socket and drop what was queued; ``on_lost`` is called with ``why``. Closing twice does nothing."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._decoder.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._on_lost(why)


def _received(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
