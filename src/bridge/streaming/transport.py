"""The bytes below a session: what is left of an HTTP connection once it was upgraded."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A connection after its upgrade. One task receives, any may send."""

    async def receive(self) -> bytes:
        """The next bytes, at most 64 KiB; b"" when the client has closed or lost the connection. Never raises for that."""
        ...

    async def send(self, data: bytes) -> None:
        """Write ``data``; returns when what is buffered is below the high-water mark. Raises ConnectionLost."""
        ...

    async def close(self) -> None:
        """Close it, after what was sent. Idempotent."""
        ...
