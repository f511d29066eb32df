"""A layer that is here already on another base is not fetched again: its tar is made again from its files.

The same blob on two bases has two chain ids and lies in the store twice (docs/adr/0003-image-store.md); builders that copy files into
layers of their own make such images. Of layers that are wanted at the same time, the first is fetched and the others wait for it.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bridge.errors import CorruptData
from bridge.host import process, rootfs
from bridge.images.disk import blocking
from bridge.images.unpack import FILES, TAR_LOG, import_path

_CODE = "import sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images.export_child import main; sys.exit(main(sys.argv[2:]))"
_CHUNK = 1 << 20


class Turns:
    """Who wants the same content waits for one another: a lock for each diff id that somebody wants."""

    def __init__(self) -> None:
        self._locks: dict[str, anyio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, diff_id: str) -> AsyncIterator[None]:
        """Alone with ``diff_id`` while the block runs."""
        lock = self._locks.setdefault(diff_id, anyio.Lock())
        self._users[diff_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[diff_id] -= 1
            if not self._users[diff_id]:
                del self._users[diff_id], self._locks[diff_id]


async def tar_of(directory: Path, scratch: Path, discard: Callable[[Path], None]) -> AsyncGenerator[bytes]:
    """The tar of the layer in ``directory``, by way of the file ``scratch``, which is given to ``discard`` in the end.

    Raises CorruptData, HostError. That it is the right one is for the caller to check by its diff id.
    """
    try:
        await _write(directory, scratch)
        fd = await blocking(os.open, scratch, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while chunk := await blocking(os.read, fd, _CHUNK):
                yield chunk
        finally:
            os.close(fd)
    finally:
        discard(scratch)


async def bytes_of(files: Path, path: str) -> AsyncGenerator[bytes]:
    """The file ``path`` below ``files``, which nothing in it can lead out of. Raises CorruptData, HostError."""
    fd = await blocking(open_file, files, path)
    try:
        while chunk := await blocking(os.read, fd, _CHUNK):
            yield chunk
    finally:
        os.close(fd)


def open_file(files: Path, path: str) -> int:
    """The same as a descriptor. Blocks. Raises CorruptData, OSError."""
    try:
        found = rootfs.open_in(files, path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise CorruptData(f"{path!r} is missing in layer {files.parent.name}") from exc
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise CorruptData(f"{path!r} in layer {files.parent.name} is no file any more")
    return found


async def _write(directory: Path, scratch: Path) -> None:
    log = await blocking(os.open, directory / TAR_LOG, os.O_RDONLY | os.O_CLOEXEC)
    try:
        out = await blocking(os.open, scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            counter = os.memfd_create("twin", os.MFD_CLOEXEC)
            try:
                argv = [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _CODE,
                    import_path(),
                    str(directory / FILES),
                    *map(str, (log, out, counter)),
                    "none",
                ]
                done = await process.run(argv, timeout=math.inf, max_output=1 << 16, pass_fds=(log, out, counter))
            finally:
                os.close(counter)
        finally:
            os.close(out)
    finally:
        os.close(log)
    if done.returncode != 0:
        raise CorruptData(f"layer {directory.name} can't be read again: {done.stdout[-300:].decode('utf-8', 'replace')}")
