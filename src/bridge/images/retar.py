"""A layer's tar made again from its tar log and its files, byte for byte. Runs in confined children; imports next to nothing.

The log has every byte of the tar but the content of regular files, in the same order (docs/adr/0003-image-store.md). So the
tar reader is led through the log, and wherever it expects content it is given the file's instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from bridge.images.extract import clean
from bridge.images.tarstream import BLOCK, REGULAR, Member, TarReader

_CHUNK = 1 << 20
_WHITEOUT = b".wh."

Content = Callable[[bytes, list[tuple[int, int]] | None], Iterator[bytes]]
"""The content of the file at a path: all of it, or the given segments (offset, length)."""


def again(log: Iterator[bytes], content: Content, sink: Callable[[bytes | memoryview], object]) -> None:
    """Give the bytes of the tar to ``sink``, in order. Raises BadArchive when log and files don't fit, and OSError.

    That nothing is raised proves nothing: only the digest of what came out does.
    """
    replay = _Replay(log)
    reader = TarReader(iter(replay), sink)
    for member in reader:
        if _has_content(member):
            replay.content = content(clean(member.name, member.name), member.segments)
            for piece in reader.content():
                sink(piece)


def file_content(path: bytes, segments: list[tuple[int, int]] | None) -> Iterator[bytes]:
    """See ``Content``; of a file below the current directory. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for offset, length in [(0, os.fstat(fd).st_size)] if segments is None else segments:
            while length > 0 and (piece := os.pread(fd, min(length, _CHUNK), offset)):
                offset, length = offset + len(piece), length - len(piece)
                yield piece
    finally:
        os.close(fd)


def _has_content(member: Member) -> bool:
    return member.type in REGULAR and not member.name.rpartition(b"/")[2].startswith(_WHITEOUT)


class _Replay:
    """The chunks that the tar had: the log's, cut so small that the reader never takes too many, and content where it is due."""

    def __init__(self, log: Iterator[bytes]) -> None:
        self._log = log
        self._buffer = b""
        self._position = 0
        self.content: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            size = BLOCK
            if self.content is not None:
                given = 0
                for piece in self.content:
                    given += len(piece)
                    yield piece
                self.content = None
                size = -given % BLOCK or BLOCK  # first the padding of what was given
            piece = self._next(size)
            if not piece:
                return
            yield piece

    def _next(self, size: int) -> bytes:
        while len(self._buffer) - self._position < size and (more := next(self._log, b"")):
            self._buffer, self._position = self._buffer[self._position :] + more, 0
        start, self._position = self._position, min(self._position + size, len(self._buffer))
        return self._buffer[start : self._position]
