"""Decompression of one layer as a stream of bounded chunks, with the limits that stop a bomb. Runs in the unpacking child.

The format is recognised by its first bytes, not by the media type, which registries and tools get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

TYPE_CHECKING = False  # as of typing, whose import costs each child 5 ms and 1.4 MiB
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 18
"""A quarter of a MiB is as fast as four times as much, and many layers are unpacked at once."""
_SLACK = 64 << 20
"""Bytes that may come out before the ratio counts: a short run of zeros is no bomb."""
_ZSTD_WINDOW = 1 << 27


class BadStream(Exception):
    """The compressed bytes are damaged or of an unknown format."""


class TooBig(Exception):
    """A limit on what a layer may unpack to was passed."""


class Source:
    """The compressed bytes: counts them and can look at the first ones. ``read`` returns b"" at the end."""

    __slots__ = ("_head", "_read", "count")

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._head = b""
        self.count = 0

    def peek(self) -> bytes:
        """The first bytes: four, unless the stream is shorter."""
        while len(self._head) < 4 and (part := self._read(CHUNK)):
            self._head += part
        return self._head[:4]

    def read(self, size: int = CHUNK) -> bytes:
        """Up to ``size`` bytes."""
        data, self._head = (self._head[:size], self._head[size:]) if self._head else (self._read(size), b"")
        self.count += len(data)
        return data


def _plain(source: Source) -> Iterator[bytes]:
    while data := source.read(CHUNK):
        yield data


def _gzip(source: Source, library: Any) -> Iterator[bytes]:
    """Every member of a gzip stream; zeros after the last one are padding."""
    pending = b""
    while pending := (pending or source.read()):
        member = library.IgzipDecompressor(flag=library.DECOMP_GZIP)
        while not member.eof:
            if member.needs_input and not pending:
                pending = source.read()
                if not pending:
                    raise BadStream("the gzip stream is cut short")
            data, pending = pending, b""
            try:
                out = member.decompress(data, CHUNK)
            except library.error as exc:
                raise BadStream(f"damaged gzip stream: {exc}") from exc
            if out:
                yield out
        pending = member.unused_data.lstrip(b"\0")
        while not pending and (more := source.read()):
            pending = more.lstrip(b"\0")


def _zstd(source: Source, library: Any) -> Iterator[bytes]:
    reader = library.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(source, read_size=CHUNK // 4, read_across_frames=True)
    try:
        while out := reader.read(CHUNK):
            yield out
    except library.ZstdError as exc:
        raise BadStream(f"damaged zstd stream: {exc}") from exc


def open_stream(source: Source) -> Iterator[bytes]:
    """The uncompressed chunks of ``source`` (at most ``CHUNK`` bytes each); imports what it needs at once, not at first use."""
    head = source.peek()
    if head[:2] == b"\x1f\x8b":
        from isal import igzip_lib

        return _gzip(source, igzip_lib)
    if head == b"\x28\xb5\x2f\xfd" or (head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):  # zstd, or its skippable frame
        import zstandard

        return _zstd(source, zstandard)
    return _plain(source)


def limited(chunks: Iterator[bytes], source: Source, max_bytes: int, max_ratio: int) -> Iterator[bytes]:
    """``chunks``, unless they pass ``max_bytes`` or ``max_ratio`` times what was read of ``source``: then TooBig."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise TooBig(f"the layer unpacks to more than {max_bytes} bytes")
        if total > _SLACK and total > max_ratio * source.count:
            raise TooBig(f"the layer unpacks to more than {max_ratio} times its compressed size")
        yield chunk
