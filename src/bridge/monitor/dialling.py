"""Connecting to the monitor's socket, which may be about to appear."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import anyio

from bridge.errors import HostError, MonitorGone

_RETRY_SECONDS = 0.02


async def dial(path: Path, timeout: float) -> socket.socket:
    """A connected, non-blocking socket within ``timeout`` seconds. Raises MonitorGone, HostError."""
    failure: OSError | None = None
    with anyio.move_on_after(timeout):
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect(str(path))  # on a unix socket this never waits: it succeeds, or fails with EAGAIN when the queue is full
            except OSError as exc:
                sock.close()
                failure = exc
                if exc.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
                    raise HostError(f"can't connect to the monitor at {path}: {exc}", errno=exc.errno) from exc
            else:
                return sock
            await anyio.sleep(_RETRY_SECONDS)
    raise MonitorGone(f"no monitor answers at {path} within {timeout:g} s: {failure}") from failure
