"""Pipes whose other end a child process holds, read by the event loop without threads.

A Collector reads one descriptor to its end, keeps at most ``limit`` bytes and throws the rest away, so that a writer is
never blocked and memory is bounded.
"""

from __future__ import annotations

import asyncio
import os

import anyio

_CHUNK = 65536


def make_pipe(owner: tuple[int, int] | None = None) -> tuple[int, int]:
    """(read end, write end), both close-on-exec; the caller closes each exactly once. ``owner``: its uid and gid, else our own."""
    ends = os.pipe2(os.O_CLOEXEC)
    if owner is not None:
        os.fchown(ends[0], *owner)
    return ends


class StdioPipes:
    """The pipes of a process's standard streams: ``far`` ends for the process, ``near`` ends, non-blocking, for us. ``close`` ends both."""

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool, owner: tuple[int, int] | None = None) -> None:
        self.near: dict[str, int] = {}
        self.far: dict[str, int] = {}
        try:
            for name, wanted in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                if wanted:
                    ends = make_pipe(owner)
                    self.far[name], self.near[name] = ends if name == "stdin" else reversed(ends)
                    os.set_blocking(self.near[name], False)
        except BaseException:
            self.close()
            raise

    def close_far(self) -> None:
        """Close the process's ends, once it has them."""
        while self.far:
            os.close(self.far.popitem()[1])

    def take(self, name: str) -> int:
        """Our end of one stream, which is the caller's from now on."""
        return self.near.pop(name)

    def close_near(self, name: str) -> None:
        """Close our end of one stream; one that is closed or was taken is no error."""
        descriptor = self.near.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close everything that is left."""
        self.close_far()
        while self.near:
            os.close(self.near.popitem()[1])


class Collector:
    """Owns ``descriptor`` from construction on; ``close`` gives it back to the kernel."""

    def __init__(self, descriptor: int, limit: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._limit = limit
        self._pieces: list[bytes] = []
        self._kept = 0
        self.truncated = False
        self.ended = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._on_readable)

    @property
    def data(self) -> bytes:
        """What was kept so far."""
        return b"".join(self._pieces)

    def close(self) -> None:
        """Stop reading; idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            self.ended.set()

    def drain(self) -> None:
        """Take what is in the pipe now."""
        while self._descriptor >= 0 and self._on_readable():
            pass

    def _on_readable(self) -> bool:
        try:
            chunk = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            # EIO is how a pty says that its other side is closed.
            chunk = b""
        if not chunk:
            self.close()
            return False
        room = self._limit - self._kept
        if room < len(chunk):
            self.truncated = True
            chunk = chunk[:room]
        if chunk:
            self._pieces.append(chunk)
            self._kept += len(chunk)
        return True
