"""Buffered non-blocking writers: a container's stdin and an attached client's output."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

BUFFER_HIGH = 256 * 1024
"""Bytes queued for a client at which the container's output is held."""
BUFFER_LOW = 64 * 1024
"""Bytes queued at which it goes on."""
STDIN_LIMIT = 64 * 1024
"""Bytes queued for a container's stdin at which its clients are not read."""


class Stdin:
    """The writing end of a container's stdin, a pipe or a pty; buffers what the container does not take yet."""

    def __init__(self, fd: int, *, terminal: bool) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._closing = False
        self.closed = False
        self.on_room: Callable[[], None] = lambda: None
        self.on_closed: list[Callable[[], object]] = []
        """Called once each, when it is closed."""

    @property
    def has_room(self) -> bool:
        """Whether more may be written; ``on_room`` tells when it becomes true again."""
        return len(self._buffer) < STDIN_LIMIT

    @property
    def queued(self) -> bytes:
        """What the container has not taken yet."""
        return bytes(self._buffer)

    @property
    def closing(self) -> bool:
        """Whether it is closed when that is written."""
        return self._closing

    def fileno(self) -> int:
        """The descriptor, while it is not closed."""
        return self._fd

    def write(self, data: bytes) -> None:
        """Queue ``data``; dropped once stdin is closed."""
        if not self.closed and not self._closing:
            self._buffer += data
            self._flush()

    def finish(self) -> None:
        """Close when the buffer is written. A terminal's input can't be closed, so there it does nothing."""
        if not self._terminal:
            self._closing = True
            self._flush()

    def close(self) -> None:
        """Close now and drop the buffer."""
        if not self.closed:
            self.closed = True
            self._buffer.clear()
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self.on_room()
            while self.on_closed:
                self.on_closed.pop()()

    def _flush(self) -> None:
        if self.closed:
            return
        try:
            while self._buffer:
                del self._buffer[: os.write(self._fd, self._buffer)]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._flush)
        except OSError:  # the container has closed its end
            self.close()
        else:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self.close()
        if self.has_room:
            self.on_room()


class Sink:
    """One output descriptor of a client; ``on_change`` is called when it is congested, relieved or closed."""

    def __init__(self, fd: int, on_change: Callable[[], None]) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._size = 0
        self._closing = False
        self._on_change = on_change
        self.closed = False
        self.congested = False

    def offer(self, data: bytes) -> None:
        """Write now what the client takes, and the rest when it can."""
        if self.closed:
            return
        self._queue.append(memoryview(data))
        self._size += len(data)
        if len(self._queue) == 1:
            self._flush()
        if self._size > BUFFER_HIGH and not self.congested:
            self.congested = True
            self._on_change()

    def finish(self) -> None:
        """Close when everything is written."""
        self._closing = True
        if not self.closed and not self._queue:
            self.close()

    def close(self) -> None:
        """Close now and drop what is queued."""
        if not self.closed:
            self.closed = True
            self.congested = False
            self._queue.clear()
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._on_change()

    def _flush(self) -> None:
        try:
            while self._queue:
                data = self._queue[0]
                sent = os.write(self._fd, data)
                self._size -= sent
                if sent == len(data):
                    self._queue.popleft()
                else:
                    self._queue[0] = data[sent:]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._flush)
        except OSError:  # the client is gone
            self.close()
            return
        else:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self.close()
                return
        if self.congested and self._size <= BUFFER_LOW:
            self.congested = False
            self._on_change()
