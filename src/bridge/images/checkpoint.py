"""Files of checkpoints: the difference that a writable layer makes, archives made and unpacked (bridge.ports.checkpoints).

What is unpacked may come from anywhere, so children do that which can name nothing but the directory they fill.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio.to_thread

from bridge.errors import CorruptData, HostError, InvalidRequest, NotFound
from bridge.host import process
from bridge.images import criu_files, disk
from bridge.images.catalogue import Catalogue
from bridge.images.checkpoint_writing import pack, walk, write_diff
from bridge.images.disk import CHECKPOINT, Directories
from bridge.images.manifest import load
from bridge.images.unpack import FILES, Unpacker, import_path
from bridge.ports.checkpoints import ANNOTATIONS, DELETED, DIFF, PROCESSES

_IN, _UPPER = "restore", "upper"
_CODE = "import sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images.checkpoint_child import main; sys.exit(main(sys.argv[2:]))"
_CHUNK = 1 << 20
_DELETED_BYTES = 64 << 20
_COPY_SECONDS = 3600.0
_FAULT_OF_ARCHIVE = 1
"""The child's exit code; it is not imported here, for what it needs the server doesn't."""


class CheckpointFiles:
    """See the port."""

    def __init__(self, directories: Directories, catalogue: Catalogue, unpacker: Unpacker) -> None:
        self._directories = directories
        self._catalogue = catalogue
        self._unpacker = unpacker

    async def begin(self, container_id: str) -> Path:
        """See the port."""
        await self.end(container_id)
        await disk.blocking(_private, self._home(container_id))
        directory = self._home(container_id) / CHECKPOINT
        await disk.blocking(_private, directory)
        return directory

    async def end(self, container_id: str) -> None:
        """See the port."""
        home = self._home(container_id)
        for name in (CHECKPOINT, _IN):
            await disk.remove_tree(home / name)
        await disk.blocking(_drop_empty, home)

    async def write_diff(self, container_id: str, directory: Path) -> None:
        """See the port."""
        image = self._catalogue.snapshots.get(container_id)
        if image is None:
            raise NotFound(f"container {container_id} has no writable layer")
        lowers = [self._directories.files(layer.id) for layer in self._catalogue.images[image].layers]
        await disk.blocking(write_diff, self._home(container_id) / _UPPER, lowers, directory)

    async def pack(self, directory: Path, location: Path) -> None:
        """See the port."""
        await disk.blocking(pack, directory, location)

    async def unpack(self, container_id: str, location: Path) -> Path:
        """See the port."""
        home = self._home(container_id)
        await disk.blocking(_private, home)
        await self._unpacker.unpack(home / _IN, _content(location), None)
        await disk.blocking(_check_plain, home / _IN / FILES)
        return home / _IN / FILES

    async def named(self, image_id: str) -> str:
        """See the port."""
        record = self._catalogue.images.get(image_id)
        found = await self._catalogue.blobs([record.manifest]) if record is not None else {}
        for blob in found.values():
            notes = load(blob.data, "manifest").get("annotations")
            if isinstance(notes, dict):
                return next((str(notes[name]) for name in ANNOTATIONS if notes.get(name)), "")
        return ""

    async def copy(self, container_id: str, image_id: str) -> Path:
        """See the port."""
        record = self._catalogue.images.get(image_id)
        if record is None:
            raise NotFound(f"image {image_id} is gone")
        home = self._home(container_id)
        target = home / _IN / FILES
        for directory in (home, home / _IN, target):
            await disk.blocking(_private, directory)
        for layer in record.layers:
            source = self._directories.files(layer.id)
            await disk.blocking(_check_plain, source)
            done = await process.run(["cp", "-a", "--reflink=auto", "--", f"{source}/.", str(target)], timeout=_COPY_SECONDS)
            if done.returncode:
                raise HostError(f"can't copy the checkpoint: {done.stderr.decode('utf-8', 'replace').strip()[:300]}")
        return target

    async def apply(self, directory: Path, rootfs: Path) -> None:
        """See the port."""
        deleted = await disk.blocking(_deleted, directory / DELETED)
        source = await disk.blocking(_open_diff, directory / DIFF)
        try:
            argv = [sys.executable, "-I", "-S", "-c", _CODE, import_path(), str(rootfs), str(source)]
            done = await process.run(argv, input=deleted, env={"LC_ALL": "C.UTF-8"}, timeout=math.inf, pass_fds=[source])
        finally:
            os.close(source)
        if done.returncode:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
            what = f"the checkpoint's {DIFF} can't be applied: {said[-1] if said else f'exit code {done.returncode}'}"
            raise CorruptData(what) if done.returncode == _FAULT_OF_ARCHIVE else HostError(what)
        await disk.blocking(_open_up, rootfs, directory / PROCESSES)

    def _home(self, container_id: str) -> Path:
        return self._directories.snapshots / container_id


def _open_up(rootfs: Path, images: Path) -> None:
    """Give the root directory the permissions that it had."""
    mode = criu_files.root_mode(images)
    if mode is not None and mode != stat.S_IMODE(os.stat(rootfs).st_mode):
        os.chmod(rootfs, mode)


def _private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)


def _drop_empty(home: Path) -> None:
    """A pod has no writable layer, and so nothing else here."""
    with contextlib.suppress(OSError):
        home.rmdir()


def _check_plain(directory: Path) -> None:
    """Files and directories only: who restores, as root, opens these files by name and must not be led elsewhere."""
    for name, found in walk(directory):
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise CorruptData(f"the checkpoint holds {name!r}, which is neither a file nor a directory")


async def _content(location: Path) -> AsyncGenerator[bytes]:
    try:
        file = await anyio.to_thread.run_sync(_open_regular, location)
        try:
            while chunk := await anyio.to_thread.run_sync(os.read, file, _CHUNK):
                yield chunk
        finally:
            os.close(file)
    except OSError as exc:
        raise HostError(f"can't read {location}: {exc.strerror}", errno=exc.errno) from exc


def _open_regular(path: Path) -> int:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidRequest(f"{path} is not a file")
    return file


def _open_diff(path: Path) -> int:
    """The tar, /dev/null when there is none: a container that changed nothing."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _deleted(path: Path) -> bytes:
    """The names, each ended by NUL."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with open(file, "rb") as stream:
        text = stream.read(_DELETED_BYTES)
    try:
        names = json.loads(text or b"[]") or []
        return b"".join(os.fsencode(name) + b"\0" for name in names)
    except (ValueError, TypeError) as exc:
        raise CorruptData(f"the checkpoint's {DELETED} is no list of names: {exc}") from exc
