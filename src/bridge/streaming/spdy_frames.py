"""SPDY/3.1 on the wire: frames to bytes, bytes to frames, and the compressed header blocks. No connection state but zlib's.

Source: SPDY Protocol Draft 3.1, sections 2.2 (frames) and 2.6.10 (header blocks, dictionary). Data frames are handed out in
the pieces in which they arrive, so a frame of 16 MiB costs no more memory than one of 16 bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from bridge.errors import InvalidRequest

VERSION = 3
FLAG_FIN = 0x01
FLAG_UNIDIRECTIONAL = 0x02
MAX_STREAM_ID = 0x7FFFFFFF
MAX_FRAME = 0xFFFFFF
_HEAD = struct.Struct(">II")
_WORDS = struct.Struct(">II")
_CONTROL = 0x80000000


class SpdyError(InvalidRequest):
    """The peer broke the protocol, or a limit. The connection can't go on."""


class Kind(IntEnum):
    """Control frame types (section 2.6)."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Reset(IntEnum):
    """RST_STREAM status codes (section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


@dataclass(frozen=True, slots=True)
class Control:
    """A whole control frame; ``kind`` is its type number, which may be one that we don't know."""

    kind: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a data frame; ``end`` only on the last piece of one with FLAG_FIN."""

    stream: int
    data: bytes
    end: bool


class FrameParser:
    """Bytes in, frames out. ``max_control`` bounds the payload of control frames, in bytes."""

    def __init__(self, max_control: int) -> None:
        self._max_control = max_control
        self._rest = b""
        self._stream = 0
        self._left = 0
        self._end = False

    def feed(self, data: bytes) -> Iterator[Control | Data]:
        """The frames that ``data`` completes, and pieces of data frames; to be taken to the end. Raises SpdyError."""
        if self._rest:  # a head, or a control frame, that came in two
            data, self._rest = self._rest + data, b""
        position = 0
        while position < len(data):
            if not self._left:
                frame, size = self._next(data, position)
                if not size:
                    self._rest = data[position:]
                    return
                position += size
                if frame is not None:
                    yield frame
                continue
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            yield Data(self._stream, piece, self._end and not self._left)

    def _next(self, data: bytes, position: int) -> tuple[Control | Data | None, int]:
        """The frame that begins at ``position`` and its size; no frame for the head of one with data, size 0 when there is too little."""
        there = len(data) - position
        if there < _HEAD.size:
            return None, 0
        first, second = _HEAD.unpack_from(data, position)
        flags, length = second >> 24, second & MAX_FRAME
        if not first & _CONTROL:
            self._stream, self._left, self._end = first, length, bool(flags & FLAG_FIN)
            return (None if length else Data(first, b"", self._end)), _HEAD.size
        version = (first >> 16) & 0x7FFF
        if version != VERSION:
            raise SpdyError(f"a frame of SPDY version {version}; this server speaks 3.1")
        if length > self._max_control:
            raise SpdyError(f"a control frame of {length} bytes; at most {self._max_control} are taken")
        if there < _HEAD.size + length:
            return None, 0
        payload = data[position + _HEAD.size : position + _HEAD.size + length]
        return Control(first & 0xFFFF, flags, payload), _HEAD.size + length


def control(kind: Kind, payload: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return _HEAD.pack(_CONTROL | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def data_head(stream: int, length: int, *, end: bool) -> bytes:
    """What stands before ``length`` bytes of data."""
    return _HEAD.pack(stream, (FLAG_FIN if end else 0) << 24 | length)


def words(*values: int) -> bytes:
    """32-bit numbers."""
    return b"".join(value.to_bytes(4, "big") for value in values)


def two_words(payload: bytes, what: str) -> tuple[int, int]:
    """The two 32-bit numbers of ``payload``; the first without its reserved bit. Raises SpdyError."""
    if len(payload) != _WORDS.size:
        raise SpdyError(f"a {what} frame of {len(payload)} bytes")
    first, second = _WORDS.unpack(payload)
    return first & MAX_STREAM_ID, second


def settings(payload: bytes) -> dict[int, int]:
    """Id → value of a SETTINGS frame. Raises SpdyError."""
    if len(payload) < 4 or len(payload) != 4 + 8 * int.from_bytes(payload[:4], "big"):
        raise SpdyError("a SETTINGS frame whose length does not fit its count")
    pairs = [_WORDS.unpack_from(payload, start) for start in range(4, len(payload), 8)]
    return {key & MAX_FRAME: value for key, value in pairs}


_NAMES = (  # noqa: SIM905 - as a list it would take 60 lines
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization "
    "cache-control connection content-base content-encoding content-language content-length content-location content-md5 content-range "
    "content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified "
    "location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding "
    "upgrade user-agent vary via warning www-authenticate method get status"
).split()
_MORE_NAMES = ("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin")
_WORDS_AT_THE_END = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information"
    "204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error"
    "501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, "
    "Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public"
    "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(words(len(name)) + name.encode() for name in (*_NAMES, *_MORE_NAMES)) + _WORDS_AT_THE_END.encode()
"""The dictionary of section 2.6.10.1, 1423 bytes."""


class HeaderCodec:
    """The two zlib streams of a connection. ``limit`` bounds a block once it is decompressed, in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def encode(self, headers: Sequence[tuple[str, str]]) -> bytes:
        """A compressed block. A name that stands more than once is sent once with its values joined by NUL."""
        merged: dict[str, list[str]] = {}
        for name, value in headers:
            merged.setdefault(name.lower(), []).append(value)
        block = [words(len(merged))]
        for name, values in merged.items():
            for text in (name.encode(), "\0".join(values).encode()):
                block += [words(len(text)), text]
        return self._deflate.compress(b"".join(block)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def decode(self, data: bytes) -> Mapping[str, str]:
        """Name (lower case) → value; several values stay joined by NUL. Raises SpdyError."""
        try:
            block = self._inflate.decompress(data, self._limit + 1)
        except zlib.error as exc:
            raise SpdyError(f"a header block that can't be decompressed: {exc}") from exc
        if len(block) > self._limit or self._inflate.unconsumed_tail:
            raise SpdyError(f"a header block of more than {self._limit} bytes")
        return _pairs(block)


def _pairs(block: bytes) -> Mapping[str, str]:
    texts: list[bytes] = []
    count, position = int.from_bytes(block[:4], "big"), 4
    while position < len(block):
        length = int.from_bytes(block[position : position + 4], "big")
        position += 4
        texts.append(block[position : position + length])
        position += length
    if len(block) < 4 or position != len(block) or len(texts) != 2 * count:
        raise SpdyError("a header block whose lengths do not fit")
    found: dict[str, str] = {}
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        key = name.decode("latin-1").lower()
        if not key or key in found:
            raise SpdyError("a header block with an empty or repeated name")
        found[key] = value.decode("utf-8", "replace")
    return found
