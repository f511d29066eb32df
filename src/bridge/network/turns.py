"""Who may run plugins when (CNI specification 1.1.0, section 3, "Lifecycle & Ordering").

Operations of different containers run side by side; those of one container one after another; a garbage collection only
while no other runs. A collection waits for a quiet moment without holding anybody up, so that a plugin that hangs can't
stop new pods; the collection itself is bounded by its plugins' deadlines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


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
