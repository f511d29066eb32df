"""The process that compares one unpacked layer with what was written down when it was made; a report on stdout.

Attributes are compared with the layer's listing. The content is proved by the diff id: the layer's tar is made again from tar log and
files. Where that can't be (the archive repeated a name), the listing has a digest of each file. Confined as the unpacking child is, for
links in a layer lead anywhere. The report: ``problem <text>`` a line, ``bytes`` and ``inodes`` on disk, last ``done`` or ``error <text>``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from bridge.images import confine, decompress, listing, retar
from bridge.images.decompress import BadStream, Source
from bridge.images.tarstream import BadArchive

_CHUNK = 1 << 20
_MOST_PROBLEMS = 20
_NICE = 19


class Problems:
    """What is wrong: the first few in words, the rest as a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        """One more."""
        self.count += 1
        if self.count <= _MOST_PROBLEMS:
            self.texts.append(text)

    def lines(self) -> list[str]:
        """For the report."""
        more = self.count - len(self.texts)
        return [f"problem {text}" for text in [*self.texts, *([f"and {more} more"] if more else [])]]


class Packed:
    """A gzipped file behind a descriptor, and the sha256 of its bytes as they lie there once they were all read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = sha256()
        self._stream = decompress.open_stream(Source(self._read))

    def _read(self, size: int) -> bytes:
        data = os.read(self._fd, size)
        self._hash.update(data)
        return data

    def __iter__(self) -> Iterator[bytes]:
        return self._stream

    def digest(self) -> str:
        """In hex; of all of it, also when it could not be decompressed to its end."""
        while self._read(_CHUNK):
            continue
        return self._hash.hexdigest()


class Files:
    """Reads the layer's files, from the disk and not from memory, at most ``rate`` bytes a second (0: as fast as it goes)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._start = time.monotonic()
        self._count = 0

    def pieces(self, path: bytes, segments: list[tuple[int, int]] | None) -> Iterator[bytes]:
        """All of the file, or its ``segments`` (offset, length). Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what a disk lost may still be in memory
            for offset, length in [(0, os.fstat(fd).st_size)] if segments is None else segments:
                while length > 0 and (piece := os.pread(fd, min(length, _CHUNK), offset)):
                    offset, length = offset + len(piece), length - len(piece)
                    self._wait(len(piece))
                    yield piece
        finally:
            os.close(fd)

    def _wait(self, size: int) -> None:
        self._count += size
        if self._rate:
            time.sleep(max(0.0, self._start + self._count / self._rate - time.monotonic()))

    def digest(self, path: bytes) -> bytes:
        """As ``listing.content``."""
        found = sha256()
        for piece in self.pieces(path, None):
            found.update(piece)
        return found.hexdigest().encode()


def _key(path: bytes) -> list[bytes]:
    return path.split(b"/")


def compare(records: Iterator[tuple[bytes, bytes, bytes]], content: listing.Content | None, problems: Problems) -> tuple[int, int]:
    """Compare the current directory with its listing, both in the same order; bytes and inodes on disk.

    Digests of content are compared when ``content`` is given.
    """
    later: dict[bytes, bytes] = {}
    usage = listing.Usage()
    walked = _counted(usage)
    actual = next(walked, None)
    for expected, path, target in records:
        if path in later:
            _judge(path, expected, later[path], problems)
            continue
        while actual is not None and _key(actual[0]) < _key(path):
            problems.add(f"{_shown(actual[0])} was added")
            actual = next(walked, None)
        if actual is None or actual[0] != path:
            problems.add(f"{_shown(path)} is missing")
            continue
        looks = _looks(path, actual[1], expected, content, problems)
        if expected == listing.LATER:
            later[path] = looks
        elif _judge(path, expected, looks, problems) and looks[:1] == b"l" and os.readlink(path) != target:
            problems.add(f"{_shown(path)} points elsewhere")
        actual = next(walked, None)
    while actual is not None:
        problems.add(f"{_shown(actual[0])} was added")
        actual = next(walked, None)
    return usage.bytes, usage.inodes


def _counted(usage: listing.Usage) -> Iterator[tuple[bytes, os.stat_result]]:
    for path, found in listing.walk():
        usage.add(found)
        yield path, found


def _looks(path: bytes, found: os.stat_result, expected: bytes, content: listing.Content | None, problems: Problems) -> bytes:
    known = expected.rpartition(b" ")[2]
    try:
        digest = content if content is not None and known != b"-" else lambda _: known
        return listing.looks(path or b".", found, digest, dated=expected != listing.LATER)
    except OSError as exc:
        problems.add(f"{_shown(path)} can't be read: {exc.strerror}")
        return expected


_PARTS = ("kind", "mode", "owner", "group", "size", "time of modification", "extended attributes", "content")


def _judge(path: bytes, expected: bytes, looks: bytes, problems: Problems) -> bool:
    if expected in (looks, listing.LATER):
        return True
    pairs = zip(_PARTS, expected.split(b" "), looks.split(b" "), strict=False)
    changed = [name for name, before, now in pairs if before != now]
    problems.add(f"{_shown(path)} has another {' and '.join(changed[:2])}")
    return False


def _shown(path: bytes) -> str:
    return repr("/" + path.decode("utf-8", "backslashreplace"))


def rebuilt(log: Iterator[bytes], files: Files) -> str:
    """The diff id of the layer that is the current directory, by its files and its log. Raises BadArchive, BadStream, OSError."""
    whole = sha256()
    retar.again(log, files.pieces, whole.update)
    return "sha256:" + whole.hexdigest()


def verify(layer: str, log: int, files: int, *, diff_id: str, listing_digest: str, content: bool, rate: int) -> list[str]:
    """The lines of the report. ``diff_id`` "" for a layer whose tar can't be made again, ``listing_digest`` "" for one without listing."""
    os.nice(_NICE if rate else 0)
    packed_log, packed_list = Packed(log), Packed(files) if listing_digest else None
    "\udc80".encode("utf-8", "surrogateescape")  # loads what the report may need while files can still be found
    confine.enter(layer)
    reader, problems = Files(rate), Problems()
    totals, log_digest = (0, 0), ""
    if packed_list is not None:
        try:
            records = listing.parse(packed_list)
            log_digest = next(records, (b"",))[0].decode("ascii", "replace")
            totals = compare(records, reader.digest if content else None, problems)
        except BadStream:
            problems.add("its listing is damaged")
        if f"sha256:{packed_list.digest()}" != listing_digest:
            problems.add("its listing is not the one that was made")
    if content and diff_id:
        _prove(packed_log, reader, diff_id, problems)
    if log_digest and packed_log.digest() != log_digest:
        problems.add("its tar log is damaged")
    return [*problems.lines(), f"bytes {totals[0]}", f"inodes {totals[1]}", "done"]


def _prove(log: Packed, files: Files, diff_id: str, problems: Problems) -> None:
    try:
        if rebuilt(iter(log), files) != diff_id:
            problems.add(f"its content is not that of {diff_id}")
    except (BadArchive, BadStream) as exc:
        problems.add(f"its content is not that of {diff_id}: {exc}")
    except OSError as exc:
        where = _shown(os.fsencode(exc.filename)) if exc.filename else "a file"
        problems.add(f"{where} can't be read: {exc.strerror}")


def main(arguments: list[str]) -> int:
    """``layer log-fd listing-fd diff-id listing-digest content rate``; the process's exit code."""
    layer, log, files, diff_id, listing_digest, content, rate = arguments
    settings: dict[str, Any] = {"diff_id": diff_id, "listing_digest": listing_digest, "content": content == "1", "rate": int(rate)}
    try:
        lines = verify(layer, int(log), int(files), **settings)
    except (OSError, MemoryError, RecursionError, ValueError) as exc:
        lines = [f"error {exc}"]
    out = memoryview("\n".join(lines).encode("utf-8", "backslashreplace"))
    while out:
        out = out[os.write(sys.stdout.fileno(), out) :]
    return 0 if lines[-1] == "done" else 1
