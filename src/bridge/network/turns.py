"""Who may run plugins when (CNI specification 1.1.0, section 3, "Lifecycle & Ordering").

Operations of different containers run side by side; those of one container one after another; a garbage collection only
while no other runs. A collection waits for a quiet moment without holding anybody up, so that a plugin that hangs can't
stop new pods; the collection itself is bounded by its plugins' deadlines.

The order of one container holds across a crash of the server too: a plugin that it started goes on without it, and a DEL
must not overtake that ADD. So every plugin inherits a lock on the pod's network namespace (``claim``).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bridge import log
from bridge.errors import HostError, NotFound
from bridge.host import namespaces

_CLAIM_POLL = 0.05  # seconds; only after a crash does anybody wait, and flock(2) can't be awaited
_logger = log.get("network")


class Turns:
    """The order of plugin runs of one node."""

    def __init__(self) -> None:
        self._running = 0
        self._queues: dict[str, tuple[anyio.Lock, int]] = {}
        self._collected: anyio.Event | None = None
        self._quiet = anyio.Event()

    @asynccontextmanager
    async def attachment(self, container_id: str) -> AsyncIterator[None]:
        """Held by an ADD, DEL or CHECK of ``container_id``."""
        while self._collected is not None:
            await self._collected.wait()
        lock, users = self._queues.get(container_id, (anyio.Lock(), 0))
        self._queues[container_id] = (lock, users + 1)
        self._running += 1
        try:
            async with lock:
                yield
        finally:
            self._leave(container_id)

    def _leave(self, container_id: str) -> None:
        lock, users = self._queues[container_id]
        if users == 1:
            del self._queues[container_id]
        else:
            self._queues[container_id] = (lock, users - 1)
        self._running -= 1
        self._wake()

    @asynccontextmanager
    async def collection(self) -> AsyncIterator[None]:
        """Held by a GC; entered once nothing else runs."""
        while self._running or self._collected is not None:
            await self._quiet.wait()
        self._collected = anyio.Event()
        try:
            yield
        finally:
            self._collected.set()
            self._collected = None
            self._wake()

    def _wake(self) -> None:
        if not self._running:
            self._quiet.set()
            self._quiet = anyio.Event()


@asynccontextmanager
async def claim(netns: Path, patience: float) -> AsyncIterator[int | None]:
    """A descriptor of the namespace pinned at ``netns``, locked by flock(2), for plugins to inherit; None when it is gone.

    The lock belongs to the open file, so it lasts until the last plugin that inherited it has ended, whatever became of
    the server that took it. One that holds it for longer than ``patience`` seconds is past every deadline (or left a
    daemon behind): it is logged and no longer waited for.
    """
    fd = _open(netns)
    if fd is None:
        yield None
        return
    try:
        if not _lock(fd):
            with anyio.move_on_after(patience) as scope:
                await _wait_locked(fd)
            if scope.cancelled_caught and patience:
                _logger.warning("a CNI plugin that an earlier server started still works on %s after %g s", netns, patience)
        yield fd
    finally:
        os.close(fd)


def _open(netns: Path) -> int | None:
    try:
        return namespaces.open_pin(netns, "net")
    except (NotFound, HostError):  # absent, or a file that nothing is mounted on any more
        return None


async def _wait_locked(fd: int) -> None:
    while True:
        await anyio.sleep(_CLAIM_POLL)
        if _lock(fd):
            return


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
