"""Waiting for changes in directories, by inotify(7).

A directory that doesn't exist yet is watched through its nearest existing ancestor, so that its creation is seen too.
Events say only *that* something changed: the owner looks again. File systems that bypass the kernel (network mounts
changed by another machine) send none: the owner also looks at long intervals.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import anyio

_libc = ctypes.CDLL(None, use_errno=True)

_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000
_IN_ATTRIB, _IN_CLOSE_WRITE, _IN_MOVE, _IN_CREATE, _IN_DELETE = 0x4, 0x8, 0xC0, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVE | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_READ = 64 * 1024


class DirectoryWatch:
    """One inotify instance. Use as ``with DirectoryWatch() as watch``; raises OSError when the user's instances are used up."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd == -1:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify_init1: {os.strerror(code)}")
        self._watched: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def watch(self, directories: Iterable[Path]) -> None:
        """Watch exactly these, from now on. Call it *before* looking at them, after every change. Blocks: for a worker thread.

        Raises OSError when watches are used up or a directory can't be read.
        """
        wanted = set()
        for directory in directories:
            wanted |= self._add(directory)
        for descriptor in self._watched - wanted:
            _libc.inotify_rm_watch(self._fd, descriptor)  # fails when the directory is gone, and the watch with it
        self._watched = wanted

    async def wait_change(self) -> None:
        """Return once something changed since the last ``drain``."""
        loop = asyncio.get_running_loop()
        readable = anyio.Event()
        loop.add_reader(self._fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._fd)

    def drain(self) -> bool:
        """Forget the changes so far; whether there were any."""
        changed = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ):
                changed = True
        return changed

    def _add(self, directory: Path) -> set[int]:
        """Watch ``directory`` and, while it is absent, ancestors up to the first that exists; closes the race of its creation."""
        added = set()
        for candidate in (directory, *directory.parents):
            descriptor = _libc.inotify_add_watch(self._fd, os.fsencode(candidate), _MASK)
            if descriptor != -1:
                added.add(descriptor)
                if candidate == directory or not self._next(candidate, directory).is_dir():
                    return added
                return added | self._add(directory)
            code = ctypes.get_errno()
            if code not in (errno.ENOENT, errno.ENOTDIR):
                raise OSError(code, f"inotify_add_watch: {os.strerror(code)}", str(candidate))
        return added

    @staticmethod
    def _next(ancestor: Path, directory: Path) -> Path:
        return ancestor / directory.relative_to(ancestor).parts[0]
