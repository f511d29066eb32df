"""The store's directories, and the blocking steps on them. ``layers/<id>`` and ``snapshots/<container>`` are live, ``tmp`` is not.

Nothing below ``tmp`` is ever referred to: it is swept at start and while running. A directory becomes live by a rename out of
``tmp`` and dies by a rename into it, so that a crash at any moment leaves either all of it or rubbish that the sweep knows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from bridge.errors import HostError
from bridge.host import inode_flags, process, syscalls
from bridge.images.unpack import FILES

T = TypeVar("T")
VIEW = "view"
"""Below a container's directory: where the layers are shown to its user namespace while its root filesystem is mounted."""
CHECKPOINT = "checkpoint"
"""Beside its writable layer: where a checkpoint of it is made."""

_REMOVE_SECONDS = 3600.0
_SMALL_TREE = 500
_ASIDE = ".damaged-"


class Directories:
    """The layout below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = root / "layers"
        self.snapshots = root / "snapshots"
        self.tmp = root / "tmp"
        self.empty = (root / "empty" / "1", root / "empty" / "2")  # lower directories of overlays that have too few; made when needed

    async def prepare(self) -> None:
        """Make what is missing. Raises HostError."""
        for path in (self.root, self.layers, self.snapshots, self.tmp):
            await blocking(_private_directory, path)
        await blocking(inode_flags.spread, self.tmp)  # layers are made there; each keeps its place when it is renamed

    def layer(self, number: int) -> Path:
        """Where layer ``number`` lies: ``fs`` and ``tar.gz`` below it."""
        return self.layers / str(number)

    def files(self, number: int) -> Path:
        """The files of layer ``number``, a lower directory for overlayfs."""
        return self.layers / str(number) / FILES

    def aside(self, number: int) -> Path:
        """A fresh name for the damaged files of layer ``number``, on which containers still stand."""
        return self.layers / f"{number}{_ASIDE}{uuid.uuid4().hex}"

    def replace_layer(self, fresh: Path, number: int, *, keep: bool) -> Path | None:
        """Put ``fresh`` into the place of damaged layer ``number``, which is never empty meanwhile. Blocks. Raises OSError.

        Returns where the damaged files are now, to be removed. With ``keep`` they are set aside instead.
        """
        home = self.layer(number)
        if not home.exists():  # the disk lost it
            os.rename(fresh, home)
            return None
        # The exchange puts the damaged files where the fresh ones were: under a name that the next start knows.
        other = self.aside(number) if keep else fresh
        os.rename(fresh, other)
        try:
            _swap(other, home, spare=self.aside(number) if keep else self.scratch())
        except OSError:
            os.rename(other, fresh)
            raise
        return None if keep else other

    def set_aside(self) -> dict[str, int]:
        """The names of all such, with the layer's number. Blocks."""
        return {name: int(name.partition(_ASIDE)[0]) for name in os.listdir(self.layers) if _ASIDE in name}

    def scratch(self) -> Path:
        """A fresh name below ``tmp``; nothing is made."""
        return self.tmp / uuid.uuid4().hex

    async def discard(self, path: Path) -> Path | None:
        """Move ``path`` into ``tmp``; where it is now, or None when it was absent."""
        return await blocking(self.discard_now, path)

    def discard_now(self, path: Path) -> Path | None:
        """``discard`` in a worker thread. Raises OSError."""
        grave = self.scratch()
        with contextlib.suppress(OSError):  # a crash may have left it mounted, and nothing below it may ever be removed
            syscalls.umount(path / VIEW, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return None
        return grave

    async def strays(self, live_layers: set[str], live_snapshots: set[str]) -> list[Path]:
        """Everything below ``tmp``, and live-looking directories that nobody knows; the latter are moved to ``tmp`` first.

        So are checkpoints that were being made: the server that ended made them for a call that ended with it.
        """
        for top, known in ((self.layers, live_layers), (self.snapshots, live_snapshots)):
            for name in await blocking(os.listdir, top):
                if name not in known:
                    await self.discard(top / name)
        for path in await blocking(lambda: [*self.snapshots.glob(f"*/{CHECKPOINT}")]):
            await self.discard(path)
        return [self.tmp / name for name in await blocking(os.listdir, self.tmp)]


def _swap(fresh: Path, home: Path, *, spare: Path) -> None:
    """Exchange the two; by way of ``spare`` where the file system can't, and then a power cut may leave nothing at ``home``."""
    try:
        syscalls.exchange(fresh, home)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.rename(home, spare)
        os.rename(fresh, home)
        os.rename(spare, fresh)


async def blocking(call: Callable[..., T], *args: object) -> T:
    """``call`` in a worker thread; OSError becomes HostError."""
    try:
        return await anyio.to_thread.run_sync(call, *args)
    except OSError as exc:
        raise HostError(f"image store: {exc}", errno=exc.errno) from exc


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


async def sync_file_system(path: Path) -> None:
    """Write everything of ``path``'s file system to the disk (syncfs). Raises HostError, also for an earlier write that failed."""
    await blocking(_sync_file_system, path)


def _sync_file_system(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


async def remove_tree(path: Path) -> None:
    """Delete ``path`` however deep it is, without crossing a mount; absent is success. Raises HostError.

    A small tree goes in a worker thread. A big one is left to rm(1), which does not compete for this process's interpreter.
    """
    if await blocking(_remove_small, path):
        return
    done = await process.run(["rm", "-rf", "--one-file-system", "--", str(path)], timeout=_REMOVE_SECONDS)
    if done.returncode != 0:
        raise HostError(f"can't remove {path}: {done.stderr.decode('utf-8', 'replace').strip()[:300]}")


def _remove_small(top: Path) -> bool:
    """Delete ``top`` if it is a file or a tree of at most ``_SMALL_TREE`` entries on one file system; else leave it and say False."""
    if not top.is_dir() or top.is_symlink():
        top.unlink(missing_ok=True)
        return True
    device = top.lstat().st_dev
    directories, files = [os.fspath(top)], list[str]()
    try:
        for directory in directories:  # grows while it is walked
            if os.lstat(directory).st_dev != device:
                return False
            with os.scandir(directory) as entries:
                for entry in entries:
                    (directories if entry.is_dir(follow_symlinks=False) else files).append(entry.path)
            if len(directories) + len(files) > _SMALL_TREE:
                return False
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:  # deeper than a path can say
            return False
        raise
    for file in files:
        os.unlink(file)
    for directory in reversed(directories):
        os.rmdir(directory)
    return True


def tree_usage(top: Path) -> tuple[int, int]:
    """Bytes on disk and inodes of ``top`` and all below; what vanishes meanwhile is not counted. Blocks."""
    size = inodes = 0
    seen: set[tuple[int, int]] = set()
    directories = [os.fspath(top)]
    for directory in directories:  # grows while it is walked
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            own = os.lstat(directory)
            size, inodes = size + own.st_blocks * 512, inodes + 1
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if found.st_nlink > 1 and (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                        size, inodes = size + found.st_blocks * 512, inodes + 1
    return size, inodes
