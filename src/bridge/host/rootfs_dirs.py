"""Make directories inside a container's root filesystem without ever leaving it, whatever links the image has.

Each step is one openat2(2) with RESOLVE_IN_ROOT, so a link that is changed meanwhile can at worst make the step fail. Links
that lead nowhere are followed as text: what they name may be mounted later.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from bridge.errors import HostError, InvalidRequest
from bridge.host import syscalls

T = TypeVar("T")
_MODE = 0o755
_MAX_LINKS = 40
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


async def follow(root: Path, path: str) -> str:
    """The absolute ``path`` as seen from ``root`` as "/": normal, every link of the image followed; its end may be missing.

    Raises InvalidRequest for a loop of links, HostError.
    """
    return await anyio.to_thread.run_sync(follow_here, root, path)


def follow_here(root: Path, path: str) -> str:
    """``follow`` in the calling thread. Blocks."""
    return _within(root, path, _follow)


async def make(root: Path, path: str) -> None:
    """Make the directory ``path``, as ``follow`` returned it, and its parents in ``root``: mode 0755, owned by root.

    Raises InvalidRequest when something else is in the way, HostError.
    """
    await anyio.to_thread.run_sync(_within, root, path, _make)


def _within(root: Path, path: str, work: Callable[[int, str], T]) -> T:
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return work(root_fd, path)
        finally:
            os.close(root_fd)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG):
            raise InvalidRequest(f"{path} in the container's root can't be a directory: {os.strerror(exc.errno)}") from exc
        raise HostError(f"{path} in the container's root: {os.strerror(exc.errno or 0)}", errno=exc.errno) from exc


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part]


def _follow(root_fd: int, path: str) -> str:
    done: list[str] = []
    ahead = _parts(path)
    links = 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            del done[-1:]
            continue
        target = _link(root_fd, "/".join([*done, part]))
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, "too many links")
        if target.startswith("/"):
            done = []
        ahead = [piece for piece in target.split("/") if piece not in ("", ".")] + ahead
    return "/" + "/".join(done)


def _link(root_fd: int, name: str) -> str | None:
    """Where the link ``name`` leads, None when it is something else or nothing."""
    try:
        fd = syscalls.openat2(root_fd, name, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _make(root_fd: int, path: str) -> None:
    at = os.dup(root_fd)
    try:
        for part in _parts(path):
            try:
                inner = _directory(at, part)
            except FileNotFoundError:
                os.mkdir(part, _MODE, dir_fd=at)
                inner = _directory(at, part)
                os.chmod(f"/proc/self/fd/{inner}", _MODE)  # mkdir's mode passes through the umask
            os.close(at)
            at = inner
    finally:
        os.close(at)


def _directory(at: int, part: str) -> int:
    # No link is followed here, for all were before; a directory that became one since is refused.
    return syscalls.openat2(at, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, _RESOLVE | syscalls.RESOLVE_NO_SYMLINKS)
