"""The process that does to a mounted root filesystem what a checkpoint's difference says: confined to it, as unpacking children are.

The tar comes on a descriptor, plain or compressed; names that are gone, each ended by NUL, on stdin. Whiteouts delete (containerd's
checkpoints have them), unlike in a layer: overlayfs makes its own. Devices are left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys

from bridge.images import confine, decompress, layerfiles
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.images.extract import Extractor, clean
from bridge.images.tarstream import BadArchive, Member, TarReader

_OPAQUE = b".wh..wh..opq"
_MOST_BYTES, _MOST_ENTRIES = 1 << 40, 1 << 24
FAULT_OF_ARCHIVE, FAULT_OF_HOST = 1, 2
"""Exit codes."""
_FAULTS = (BadArchive, BadStream, TooBig, OSError, MemoryError)


class Applier(Extractor):
    """Changes what is there, below the current directory."""

    def __init__(self) -> None:
        super().__init__(max_entries=_MOST_ENTRIES, max_bytes=_MOST_BYTES)
        self._times: dict[bytes, int] = {}

    def apply(self, reader: TarReader) -> None:
        """All members; then directories have their times again."""
        looks = os.stat(b".")
        self.run(reader)
        self._times.setdefault(b"", looks.st_mtime_ns)
        for path, when in self._times.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                layerfiles.set_time(path or b".", when, follow_symlinks=False)

    def _directory(self, path: bytes, member: Member) -> None:
        super()._directory(path, member)
        self._times[path] = member.mtime

    def _special(self, path: bytes, parent: bytes, name: bytes) -> bool:
        if name != _OPAQUE:
            return super()._special(path, parent, name)
        for each in os.listdir(parent or b"."):
            remove(parent + b"/" + each if parent else each)
        return True

    def _whiteout(self, path: bytes) -> None:
        remove(path)


def remove(path: bytes) -> None:
    """Delete a file or a tree; absent is success."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(found.st_mode):
        layerfiles.remove_tree(path)
    else:
        os.unlink(path)


def main(arguments: list[str]) -> int:
    """``rootfs tar-fd``; the process's exit code. What went wrong is told on stderr."""
    rootfs, source = arguments[0], int(arguments[1])
    os.umask(0)
    try:
        deleted = [name for name in sys.stdin.buffer.read().split(b"\0") if name]
        stream = None if os.fstat(source).st_rdev else decompress.open_stream(Source(lambda size: os.read(source, size)))
        "\udc80".encode("utf-8", "surrogateescape")  # loads what an error may need while files can still be found
        confine.enter(rootfs)
        if stream is not None:
            Applier().apply(TarReader(iter(stream)))
        for name in deleted:
            path = clean(name, name)
            if path:
                remove(path)
    except _FAULTS as exc:
        sys.stderr.write(f"{exc or type(exc).__name__}\n")
        return FAULT_OF_HOST if isinstance(exc, OSError | MemoryError) else FAULT_OF_ARCHIVE
    return 0
