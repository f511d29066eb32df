"""Two ends of a connection in memory (bridge.streaming.transport.Wire), bounded as a socket is."""

from __future__ import annotations

from collections import deque

import anyio

from bridge.streaming.channels import ConnectionLost


class _Way:
    """One direction: at most ``room`` pieces are on their way."""

    def __init__(self, room: int) -> None:
        self.pieces: deque[bytes] = deque()
        self.room = room
        self.closed = False
        self.changed = anyio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class MemoryWire:
    """One end."""

    def __init__(self, outgoing: _Way, incoming: _Way) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def receive(self) -> bytes:
        while not self._incoming.pieces:
            if self._incoming.closed:
                return b""
            await self._incoming.changed.wait()
        data = self._incoming.pieces.popleft()
        self._incoming.change()
        return data

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            while len(self._outgoing.pieces) >= self._outgoing.room and not self._outgoing.closed:
                await self._outgoing.changed.wait()
            if self._outgoing.closed:
                raise ConnectionLost("the other end is gone")
            self._outgoing.pieces.append(data[start : start + 65536])
            self._outgoing.change()

    async def close(self) -> None:
        for way in (self._outgoing, self._incoming):
            way.closed = True
            way.change()


def wires(room: int = 4) -> tuple[MemoryWire, MemoryWire]:
    """Both ends of a connection."""
    there, back = _Way(room), _Way(room)
    return MemoryWire(there, back), MemoryWire(back, there)
