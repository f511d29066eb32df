"""The process that unpacks one layer: compressed bytes on a descriptor, files in a directory, a report on stdout.

One thread decompresses and hashes (both without the interpreter's lock) while the other makes files. The report is lines of
``key value``; the last is ``done``. On failure it is ``error <kind> <message>``: stream, archive, limit or host.
"""

from __future__ import annotations

import os
import sys
from _queue import SimpleQueue
from _thread import start_new_thread
from collections.abc import Iterator
from hashlib import sha256

from isal import isal_zlib

from bridge.images import confine, decompress, listing
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.images.extract import Extractor
from bridge.images.tarstream import BadArchive, TarReader

TYPE_CHECKING = False  # as of typing, whose import costs each child 5 ms and 1.4 MiB
if TYPE_CHECKING:
    from typing import Any

_LOG_BUFFER = 1 << 18
_UNKNOWN, _SHA256 = "-", "sha256:"
_AHEAD = 4
"""Uncompressed chunks between the two threads."""


class Packed:
    """Keeps what it is given, gzipped, in the descriptor ``fd``: every byte of the tar that is not file content, or the layer's listing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: list[bytes] = []
        self._size = 0
        self._hash = sha256()
        self._gzip: Any = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)

    def add(self, data: bytes) -> None:
        """Append ``data``."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _LOG_BUFFER:
            self._write(self._gzip.compress(b"".join(self._parts)))
            self._parts, self._size = [], 0

    def close(self) -> bytes:
        """Write what is left; the sha256 of all that was written, in hex."""
        self._write(self._gzip.compress(b"".join(self._parts)) + self._gzip.flush())
        return self._hash.hexdigest().encode()

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        piece = memoryview(data)
        while piece:
            piece = piece[os.write(self._fd, piece) :]


class Ahead:
    """Chunks of an iterator, produced by a thread that stays a few chunks ahead; hashes them on the way."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._queue: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(_AHEAD):
            self._room.put(None)
        self._hash = sha256()
        self.size = 0
        start_new_thread(self._produce, ())

    def _produce(self) -> None:
        try:
            for chunk in self._chunks:
                self._room.get()
                self._hash.update(chunk)
                self.size += len(chunk)
                self._queue.put(chunk)
            self._queue.put(b"")
        except BaseException as exc:  # noqa: BLE001 - raised again by the consumer
            self._queue.put(exc)

    def __iter__(self) -> Iterator[bytes]:
        while item := self._queue.get():
            if isinstance(item, BaseException):
                raise item
            self._room.put(None)
            yield item

    def digest(self) -> str:
        """``sha256:…`` of everything, once the iteration has ended."""
        return "sha256:" + self._hash.hexdigest()


def unpack(layer: str, data: int, log: int, files: int, content: str, *, max_bytes: int, max_entries: int, max_ratio: int) -> list[str]:
    """Confine this process to ``layer`` and unpack there what descriptor ``data`` gives; the lines of the report.

    ``content`` is the digest of an artifact's only file, "-" for a layer of an image.
    """
    os.umask(0)
    source = Source(lambda size: os.read(data, size))
    stream = decompress.open_stream(source)
    "\udc80".encode("utf-8", "surrogateescape")  # loads what the report may need while files can still be found
    confine.enter(layer)
    ahead = Ahead(decompress.limited(stream, source, max_bytes, max_ratio))
    tar_log = Packed(log)
    extractor = Extractor(max_entries=max_entries, max_bytes=max_bytes)
    extractor.run(TarReader(iter(ahead), tar_log.add))
    totals = extractor.totals
    totals.exact = totals.exact and content == _UNKNOWN  # an artifact's file has no diff id, so its listing has the digest of its content
    _list(files, tar_log.close(), extractor, content)
    lines = [f"{name} {int(getattr(totals, name))}" for name in ("bytes", "inodes", "entries", "devices", "xattrs", "exact", "implicit")]
    lines += [f"diff_id {ahead.digest()}", f"tar_bytes {ahead.size}", f"blob_bytes {source.count}"]
    return [*lines, "done"]


def _list(fd: int, log_digest: bytes, extractor: Extractor, content: str) -> None:
    packed = Packed(fd)
    digest: listing.Content = listing.no_content if extractor.totals.exact else listing.content
    if content.startswith(_SHA256):  # the parent compares it with what comes
        digest = _known(content.removeprefix(_SHA256).encode())
    for record in listing.records(log_digest, extractor.settled(), digest):
        packed.add(record)
    packed.close()


def _known(digest: bytes) -> listing.Content:
    return lambda _: digest


def main(arguments: list[str]) -> int:
    """``layer data-fd log-fd listing-fd max-bytes max-entries max-ratio content``; the process's exit code."""
    layer, (data, log, files, max_bytes, max_entries, max_ratio), content = arguments[0], map(int, arguments[1:-1]), arguments[-1]
    try:
        lines = unpack(layer, data, log, files, content, max_bytes=max_bytes, max_entries=max_entries, max_ratio=max_ratio)
    except BadStream as exc:
        lines = [f"error stream {exc}"]
    except (BadArchive, RecursionError) as exc:
        lines = [f"error archive {exc}"]
    except (TooBig, MemoryError) as exc:
        lines = [f"error limit {exc or 'out of memory'}"]
    except OSError as exc:
        lines = [f"error host {exc.errno or 0} {exc.strerror}"]
    out = memoryview("\n".join(lines).encode("utf-8", "backslashreplace"))
    while out:
        out = out[os.write(sys.stdout.fileno(), out) :]
    # The other thread may sit in a read that nothing will end.
    os._exit(0 if lines[-1] == "done" else 1)
