"""What is to be sent on a connection and was not yet."""

from __future__ import annotations

_SMALL = 4096


class Outbox:
    """Bytes in the order in which they were said. Small pieces are copied together, large ones are kept as they are."""

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._last = bytearray()
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change any more."""
        self.size += len(data)
        if len(data) <= _SMALL:
            self._last += data
            return
        if self._last:
            self._pieces.append(self._last)
            self._last = bytearray()
        self._pieces.append(data)

    def take(self) -> bytes:
        """Everything."""
        found = b"".join((*self._pieces, self._last))
        self._pieces.clear()
        self._last = bytearray()
        self.size = 0
        return found
