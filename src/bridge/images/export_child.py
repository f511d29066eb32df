"""The process that writes one layer as a blob: the layer's tar made again, compressed, into a descriptor; a report on stdout.

Confined as the unpacking child is, for links in a layer lead anywhere. The report is lines of ``key value``; the last is ``done``,
or ``error <kind> <message>``: archive (the layer on disk is not what it was) or host.
"""

from __future__ import annotations

import os
import struct
import sys
from hashlib import sha256
from typing import Any

from bridge.images import confine, decompress, retar
from bridge.images.decompress import BadStream, Source
from bridge.images.tarstream import BadArchive

_GATHER = 1 << 20
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3


class _Plain:
    """Compresses nothing."""

    def compress(self, data: bytes) -> bytes:
        """``data`` as it is."""
        return data

    def flush(self) -> bytes:
        """Nothing is left."""
        return b""


def _compressor(name: str) -> Any:
    """The library is imported now, for later it can't be found."""
    if name == "gzip":
        from isal import isal_zlib

        return isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    return _Plain()


class Blob:
    """Takes a tar in pieces and writes it to the descriptor ``out``; the number of its bytes so far lies in the file ``counter``."""

    def __init__(self, out: int, counter: int, compressor: Any) -> None:
        self._out = out
        self._counter = counter
        self._compressor = compressor
        self._parts: list[bytes | memoryview] = []
        self._gathered = 0
        self.tar, self.blob = sha256(), sha256()
        self.tar_size = self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the tar."""
        self._parts.append(data)
        self._gathered += len(data)
        if self._gathered >= _GATHER:
            self._pass_on()

    def close(self) -> None:
        """Write what is left."""
        self._pass_on()
        self._write(self._compressor.flush())

    def _pass_on(self) -> None:
        data = b"".join(self._parts)
        self._parts, self._gathered = [], 0
        self.tar.update(data)
        self.tar_size += len(data)
        self._write(self._compressor.compress(data))
        os.pwrite(self._counter, struct.pack("=Q", self.tar_size), 0)

    def _write(self, data: bytes) -> None:
        self.blob.update(data)
        self.size += len(data)
        piece = memoryview(data)
        while piece:
            piece = piece[os.write(self._out, piece) :]


def export(layer: str, log: int, out: int, counter: int, compression: str) -> list[str]:
    """The lines of the report."""
    stream = decompress.open_stream(Source(lambda size: os.read(log, size)))
    blob = Blob(out, counter, _compressor(compression))
    "\udc80".encode("utf-8", "surrogateescape")  # loads what the report may need while files can still be found
    confine.enter(layer)
    retar.again(stream, retar.file_content, blob.add)
    blob.close()
    digests = [f"diff_id sha256:{blob.tar.hexdigest()}", f"digest sha256:{blob.blob.hexdigest()}"]
    return [*digests, f"tar_size {blob.tar_size}", f"size {blob.size}", "done"]


def main(arguments: list[str]) -> int:
    """``layer log-fd out-fd counter-fd compression``; the process's exit code."""
    layer, (log, out, counter), compression = arguments[0], map(int, arguments[1:4]), arguments[4]
    try:
        lines = export(layer, log, out, counter, compression)
    except (BadArchive, BadStream, FileNotFoundError, NotADirectoryError) as exc:
        lines = [f"error archive {exc}"]
    except (OSError, MemoryError) as exc:
        lines = [f"error host {getattr(exc, 'errno', None) or 0} {getattr(exc, 'strerror', None) or 'out of memory'}"]
    text = memoryview("\n".join(lines).encode("utf-8", "backslashreplace"))
    while text:
        text = text[os.write(sys.stdout.fileno(), text) :]
    return 0 if lines[-1] == "done" else 1
