"""Pins: files with a namespace mounted on them, which keep it alive. Everything here blocks: for worker threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bridge.host import syscalls


def attach(directory: Path, pins: Mapping[str, Path], process: Path) -> None:
    """Pin the namespaces of ``process``, a directory such as /proc/thread-self; ``directory`` gets a link to a pin that lies elsewhere.

    Raises OSError; then ``remove`` takes away what was made.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for kind, pin in pins.items():
        if pin.parent != directory:
            _share(pin.parent)
            (directory / kind).symlink_to(pin)  # first, so that what follows is never without a pointer to it
        os.close(os.open(pin, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        syscalls.mount(process / "ns" / kind, pin, flags=syscalls.MS_BIND)


def _share(directory: Path) -> None:
    """Make ``directory`` a shared mount unless it is one; the lock is the one that iproute2 takes."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            syscalls.mount("", directory, flags=syscalls.MS_SHARED | syscalls.MS_REC)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # EINVAL: not a mount point yet
                raise
            syscalls.mount(directory, directory, flags=syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("", directory, flags=syscalls.MS_SHARED | syscalls.MS_REC)
    finally:
        os.close(lock)


def remove(directory: Path, kinds: Iterable[str]) -> None:
    """Unmount and unlink the pins of ``kinds``, and the directory if it is then empty. Absent means success. Raises OSError."""
    for kind in kinds:
        entry = directory / kind
        if entry.is_symlink():
            _unpin(Path(os.readlink(entry)))
        _unpin(entry)
    with contextlib.suppress(FileNotFoundError, OSError):
        directory.rmdir()  # stays when it holds something else


def _unpin(pin: Path) -> None:
    while True:
        try:
            syscalls.umount(pin, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):  # not (or no longer) mounted, absent
                break
            raise
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        pin.unlink()
