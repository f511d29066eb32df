"""The CRI log format: ``<RFC3339Nano> <stdout|stderr> <P|F> <line>``, written in bulk.

A chunk of output costs one time stamp, one ``bytes.replace`` and one write, whatever the number of its lines; a loop per line is
fifteen times slower. Bytes stay as they are, carriage returns included. A line longer than 16 KiB is cut into P pieces and an
F piece, as the kubelet and the peers expect; output that ends without a newline ends in a P piece, which the kubelet prints without
adding a newline.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bridge import log
from bridge.errors import HostError

LINE_LIMIT = 16384
"""Bytes of a line in one entry (the kubelet's and the peers' limit)."""

_logger = log.get("monitor.logs")


class Clock:
    """Formats the current time, computing the part above the second once a second."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._second = -1
        self._text = b""

    def stamp(self) -> bytes:
        """The time as RFC3339 in UTC with nine decimals."""
        second, rest = divmod(self._now_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%s.%09dZ" % (self._text, rest)


class Framer:
    """Turns the bytes of one stream into log entries, sans I/O. Keeps at most LINE_LIMIT bytes, of the unfinished line."""

    __slots__ = ("_stream", "rest")

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self.rest = b""

    def feed(self, chunk: bytes, stamp: bytes) -> bytes | memoryview:
        """The entries that ``chunk`` completes, all with time ``stamp``; empty when it completes none."""
        body = self.rest + chunk if self.rest else chunk
        position, length = 0, len(body)
        while length - position > LINE_LIMIT:
            newline = body.rfind(b"\n", position, position + LINE_LIMIT + 1)
            if newline < 0:
                return self._feed_long(body, stamp)
            position = newline + 1
        return self._whole_lines(body, stamp)

    def flush(self, stamp: bytes) -> bytes:
        """The unfinished line as a P piece, at the end of the stream; empty when there is none."""
        rest, self.rest = self.rest, b""
        return b"%s %s P %s\n" % (stamp, self._stream, rest) if rest else b""

    def _whole_lines(self, body: bytes, stamp: bytes) -> bytes | memoryview:
        end = body.rfind(b"\n") + 1
        self.rest = body[end:]
        if not end:
            return b""
        prefix = b"%s %s F " % (stamp, self._stream)
        entries = (prefix + body).replace(b"\n", b"\n" + prefix)
        # What follows the last newline is one prefix too many and the unfinished line: cheaper to cut here than to copy before.
        return memoryview(entries)[: len(entries) - len(prefix) - len(self.rest)]

    def _feed_long(self, body: bytes, stamp: bytes) -> bytes:
        parts: list[bytes | memoryview] = []
        start = position = 0
        while len(body) - position > LINE_LIMIT:
            newline = body.rfind(b"\n", position, position + LINE_LIMIT + 1)
            if newline >= 0:
                position = newline + 1
                continue
            parts.append(self._whole_lines(body[start:position], stamp))
            start = position + LINE_LIMIT
            parts.append(b"%s %s P %s\n" % (stamp, self._stream, body[position:start]))
            position = start
        parts.append(self._whole_lines(body[start:], stamp))
        return b"".join(parts)


class LogFile:
    """A container's log file, shared by its streams. A failing disk costs log lines, never the container.

    After a failed write the file gets an entry that says how many bytes are missing as soon as writing works again.
    """

    __slots__ = ("_fd", "_missing", "_torn", "clock", "lost_bytes", "path")

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or create ``path`` (0640; directories that are missing 0755). Raises HostError, also for what is no regular file.

        A symbolic link is refused: who may write to the log's directory must not choose the file that root appends to.
        """
        self.path = path
        self.clock = clock
        self.lost_bytes = 0
        self._missing = 0
        self._torn = False
        self._fd = _open(path)

    @classmethod
    def of(cls, fd: int, path: Path, clock: Clock) -> Self:
        """The log that is open as ``fd``, which it owns; its file may have been renamed since it was opened at ``path``."""
        log_file = cls.__new__(cls)
        log_file.path, log_file.clock, log_file.lost_bytes = path, clock, 0
        log_file._missing, log_file._torn, log_file._fd = 0, False, fd
        return log_file

    def fileno(self) -> int:
        """The open file."""
        return self._fd

    def write(self, entries: bytes | memoryview) -> None:
        """Append whole entries; never raises."""
        data = self._marker() + entries if self._missing else entries
        try:
            self._write_all(data)
        except OSError as exc:
            self._lost(len(entries), exc)
        else:
            self._missing = 0

    def _write_all(self, data: bytes | memoryview) -> None:
        written = os.write(self._fd, data)
        while written < len(data):  # the disk became full in the middle: the next write says so
            self._torn = True
            data = data[written:]
            written = os.write(self._fd, data)
        self._torn = False

    def reopen(self) -> None:
        """Continue in a new file at the same path, after a rotation by rename. On HostError the old file stays in use."""
        new = _open(self.path)
        os.close(self._fd)
        self._fd = new
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _marker(self) -> bytes:
        text = b"%s stderr F [cri-bridge: %d bytes of log could not be written here]\n" % (self.clock.stamp(), self._missing)
        return b"\n" + text if self._torn else text

    def _lost(self, count: int, exc: OSError) -> None:
        if not self._missing:
            _logger.error("can't write %s: %s; output is dropped until it works again", self.path, exc.strerror)
        self._missing += count
        self.lost_bytes += count


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = os.open(path, flags, 0o640)
    except OSError as exc:
        why = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
        raise HostError(f"can't open log {path}: {why}", errno=exc.errno) from exc
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise HostError(f"can't open log {path}: it is not a regular file")
    return found
