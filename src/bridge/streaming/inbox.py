"""What came on a channel and was not read yet."""

from __future__ import annotations

from collections import deque

_SMALL = 4096
_PIECE = 256 << 10


class Inbox:
    """Pieces in the order in which they came. Small ones are joined, so that a byte in a frame of its own costs no object of its own."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Append ``data``."""
        if not data:
            return
        self.size += len(data)
        if self._pieces and len(self._pieces[-1]) + len(data) <= _SMALL:
            self._pieces[-1] += data
        else:
            self._pieces.append(data)

    def take(self) -> bytes:
        """The next pieces: about 256 KiB, or what there is."""
        if len(self._pieces) == 1:
            parts = [self._pieces.popleft()]
            size = len(parts[0])
        else:
            size, parts = 0, []
            while self._pieces and size < _PIECE:
                parts.append(self._pieces.popleft())
                size += len(parts[-1])
        self.size -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)
