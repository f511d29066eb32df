"""ttrpc's frames as bytes, without any I/O (github.com/containerd/ttrpc, PROTOCOL.md).

A frame is a header of ten bytes (length of the data u32, stream u32, both big-endian, kind u8, flags u8) and its data, of at
most 4 MiB. What a frame means on its stream is decided by whoever feeds the decoder.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from bridge.errors import CorruptData, LimitExceeded

MAX_DATA: Final = 4 << 20
"""Bytes of data in a frame."""
HEADER: Final = 10
_HEADER = struct.Struct(">IIBB")
_RESERVED: Final = 1 << 24
"""The first byte of the length is reserved and zero: what has it is no frame, and nothing behind it can be trusted."""


class Kind(IntEnum):
    """Kinds of frames. Others may come one day, and are ignored till then."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flags(IntFlag):
    """Flags of requests and data; a response has none. They speak of the receiver's remote side, which is the sender.

    ``REMOTE_CLOSED``: the sender sends nothing more on the stream. ``REMOTE_OPEN``: of a request, that data will follow.
    ``NO_DATA``: of data, that this is no message, not even an empty one.
    """

    NONE = 0
    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``kind`` is a plain number: it may be one that this version doesn't know."""

    stream: int
    kind: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Oversized:
    """The header of a frame with ``length`` bytes of data, more than is allowed. They are skipped; the connection stays usable."""

    stream: int
    kind: int
    length: int


def encode(stream: int, kind: int, flags: int, data: bytes) -> bytes:
    """The frame's bytes. Raises LimitExceeded when ``data`` is too long for one: nothing may be sent of it then."""
    if len(data) > MAX_DATA:
        raise LimitExceeded(f"a message of {len(data)} bytes is over ttrpc's limit of {MAX_DATA}")
    return _HEADER.pack(len(data), stream, kind, flags) + data


class Decoder:
    """Bytes in, frames out, wherever the bytes are split."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """The frames that are complete with ``data``. Raises CorruptData at what can't be a frame; feed no more then."""
        self._buffer += data
        found: list[Frame | Oversized] = []
        while True:
            if self._skip:
                dropped = min(self._skip, len(self._buffer))
                del self._buffer[:dropped]
                self._skip -= dropped
            if len(self._buffer) < HEADER:
                return found
            length, stream, kind, flags = _HEADER.unpack_from(self._buffer)
            if length >= _RESERVED:
                raise CorruptData(f"not a ttrpc frame: the reserved byte of its length is {length >> 24}")
            if length > MAX_DATA:
                found.append(Oversized(stream, kind, length))
                del self._buffer[:HEADER]
                self._skip = length
                continue
            end = HEADER + length
            if len(self._buffer) < end:
                return found
            found.append(Frame(stream, kind, flags, bytes(self._buffer[HEADER:end])))
            del self._buffer[:end]

    def end(self) -> None:
        """The bytes have ended. Raises CorruptData when they ended within a frame."""
        if self._buffer or self._skip:
            raise CorruptData("the connection ended within a ttrpc frame")
