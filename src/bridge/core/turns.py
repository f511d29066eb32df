"""Who may work next when a node has more to make than it makes at once: a bounded number, and every pod its turn.

A kubelet that comes back asks for everything together. Whoever asks first must not make the rest wait: a free place goes to the pod
that holds the fewest, among those to the one that has waited longest since its last turn. One pod never holds more than half of the
places, so that a pod whose volumes hang leaves room for all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Turns:
    """``capacity`` places. Those who wait for one are asked pod by pod, and within a pod in the order they came."""

    def __init__(self, capacity: int) -> None:
        self._free = self.capacity = capacity
        self._share = max(1, capacity // 2)
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[anyio.Event]] = {}  # the pod that was served last is the last

    @property
    def working(self) -> int:
        """Places that are taken."""
        return self.capacity - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def taken(self, pod: str) -> AsyncIterator[None]:
        """A place for as long as the block lasts. Whoever is cancelled while waiting has none."""
        await self._take(pod)
        try:
            yield
        finally:
            self._give_back(pod)

    async def _take(self, pod: str) -> None:
        # Nobody is passed over: while a place is free, all who wait belong to pods that have their share.
        if self._free and self._held.get(pod, 0) < self._share:
            self._grant(pod)
            return
        turn = anyio.Event()
        self._waiting.setdefault(pod, deque()).append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._give_back(pod)
            else:
                self._leave(pod, turn)
            raise

    def _grant(self, pod: str) -> None:
        self._free -= 1
        self._held[pod] = self._held.get(pod, 0) + 1

    def _leave(self, pod: str, turn: anyio.Event) -> None:
        queue = self._waiting[pod]
        queue.remove(turn)
        if not queue:
            del self._waiting[pod]

    def _give_back(self, pod: str) -> None:
        self._free += 1
        self._held[pod] -= 1
        if not self._held[pod]:
            del self._held[pod]
        while self._free:
            ready = [name for name in self._waiting if self._held.get(name, 0) < self._share]
            if not ready:
                return
            chosen = min(ready, key=lambda name: self._held.get(name, 0))  # the first of equals
            queue = self._waiting.pop(chosen)
            turn = queue.popleft()
            if queue:
                self._waiting[chosen] = queue
            self._grant(chosen)
            turn.set()
