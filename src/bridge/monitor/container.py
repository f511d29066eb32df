"""Stdio of one container: its output goes to the log and to attached clients, and its stdin comes from them.

Driven by readiness callbacks of the loop, one read of at most 64 KiB each, so that a container that shouts gets its turn and no more.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Mapping
from typing import Any

from bridge.errors import Unsupported
from bridge.host.console import set_size
from bridge.monitor.attach import Hub
from bridge.monitor.logs import Framer, LogFile
from bridge.monitor.pipes import Stdin

_CHUNK = 65536
_HANG_UP_SECONDS = 0.25
"""A pty hands its last bytes over from a kernel work queue; how long these are awaited after the exit."""


class Stream:
    """One output descriptor of a container."""

    __slots__ = ("fd", "framer", "name")

    def __init__(self, name: str, fd: int) -> None:
        os.set_blocking(fd, False)
        self.name = name
        self.fd = fd
        self.framer = Framer(name.encode())


class ContainerStdio:
    """Owns the log and the descriptors it is given. ``streams`` maps stdout and stderr to reading ends; a terminal has stdout only."""

    def __init__(self, log: LogFile | None, streams: dict[str, int], stdin: int | None, *, terminal: bool, stdin_once: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self.log = log
        self._terminal = terminal
        self._held = False
        self._after_drain: Callable[[], None] | None = None
        self.hub = Hub(None if stdin is None else Stdin(stdin, terminal=terminal), stdin_once=stdin_once, hold_output=self._hold)
        self._streams = [Stream(name, fd) for name, fd in streams.items()]
        for stream in self._streams:
            self._loop.add_reader(stream.fd, self._readable, stream)

    def drain(self, then: Callable[[], None]) -> None:
        """Log what the container left in its pipes when it died, then call ``then``; at most a pipe's capacity a stream.

        Whoever else still holds a pipe is read on until it ends, but the exit does not wait for that.
        """
        for stream in tuple(self._streams):
            self._read_rest(stream)
        if self._terminal and self._streams:
            self._after_drain = then
            self._loop.call_later(_HANG_UP_SECONDS, self._drained)
        else:
            then()

    def drain_to_end(self, then: Callable[[], None], seconds: float) -> None:
        """Log until every writer has closed, then call ``then``; after ``seconds`` at the latest, with what is there by then.

        For output that another process copies into our pipes: at the exit it may still be on its way.
        """
        self._after_drain = then
        if self._streams:
            self._loop.call_later(seconds, self._overdue)
        else:
            self._drained()

    def _overdue(self) -> None:
        if self._after_drain is not None:
            for stream in tuple(self._streams):
                self._read_rest(stream)
            self._drained()

    def ends(self) -> dict[str, int]:
        """The descriptors that are open: of the outputs by name, and stdin."""
        ends = {stream.name: stream.fd for stream in self._streams}
        stdin = self.hub.stdin
        return ends if stdin is None or stdin.closed else {**ends, "stdin": stdin.fileno()}

    def described(self) -> dict[str, Any]:
        """What a successor must know besides: the parameters of ``adopt``."""
        path = None if self.log is None else str(self.log.path)
        return {"terminal": self._terminal, "stdin_once": self.hub.stdin_once, "log_path": path}

    def carried(self) -> dict[str, Any]:
        """Everything that a renewed monitor must have: ``described``, the open ends, the log's descriptor, and what is in memory."""
        stdin = self.hub.stdin
        return {
            **self.described(),
            "ends": self.ends(),
            "log": None if self.log is None else self.log.fileno(),
            "rest": {stream.name: stream.framer.rest for stream in self._streams},
            "typed": b"" if stdin is None else stdin.queued,
            "closing": stdin is not None and stdin.closing,
        }

    def carry_on(self, rest: Mapping[str, bytes], typed: bytes, closing: bool) -> None:
        """Have in memory what ``carried`` told."""
        for stream in self._streams:
            stream.framer.rest = rest.get(stream.name, b"")
        if self.hub.stdin is not None:
            self.hub.stdin.write(typed)
            if closing:
                self.hub.stdin.finish()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows. Raises Unsupported without a terminal."""
        if not self._terminal:
            raise Unsupported("the container has no terminal")
        for stream in self._streams:
            set_size(stream.fd, width, height)

    def close(self) -> None:
        """Let go of everything, also of pipes that are still open elsewhere."""
        for stream in tuple(self._streams):
            self._end(stream)
        self.hub.close()
        if self.log is not None:
            self.log.close()
            self.log = None

    def _readable(self, stream: Stream) -> None:
        data = _read(stream.fd)
        if data:
            self._take(stream, data)
        elif data is not None:
            self._end(stream)

    def _take(self, stream: Stream, data: bytes) -> None:
        if self.log is not None:
            entries = stream.framer.feed(data, self.log.clock.stamp())
            if entries:
                self.log.write(entries)
        self.hub.offer(stream.name, data)

    def _read_rest(self, stream: Stream) -> None:
        left = _CHUNK if self._terminal else max(fcntl.fcntl(stream.fd, fcntl.F_GETPIPE_SZ), _CHUNK)
        while left > 0:
            data = _read(stream.fd)
            if data is None:
                break
            if not data:
                self._end(stream)
                return
            self._take(stream, data)
            left -= len(data)
        self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        if self.log is not None:
            entries = stream.framer.flush(self.log.clock.stamp())
            if entries:
                self.log.write(entries)

    def _end(self, stream: Stream) -> None:
        self._flush(stream)
        self._streams.remove(stream)
        self._loop.remove_reader(stream.fd)
        os.close(stream.fd)
        self.hub.output_ended(stream.name)
        if not self._streams:
            self.hub.output_ended()
            self._drained()

    def _drained(self) -> None:
        then, self._after_drain = self._after_drain, None
        if then is not None:
            for stream in self._streams:
                self._flush(stream)
            then()

    def _hold(self, held: bool) -> None:
        self._held = held
        for stream in self._streams:
            if held:
                self._loop.remove_reader(stream.fd)
            else:
                self._loop.add_reader(stream.fd, self._readable, stream)


def _read(fd: int) -> bytes | None:
    """What is there: None when nothing is, empty at the end of the stream."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:  # EIO: the other side of a pty is closed
        return b""
