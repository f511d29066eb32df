"""Read files inside a container's root filesystem (or below a configured directory) without ever leaving it.

openat2(2) with RESOLVE_IN_ROOT resolves links and ".." as if the directory were "/", in the kernel, so no race with a
hostile image can lead out. Needs Linux ≥ 5.6. Files are opened with O_NONBLOCK and must be regular: a FIFO or a device
in an image can't make the server wait.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from bridge.errors import Denied, HostError, InvalidRequest, LimitExceeded
from bridge.host import syscalls


@dataclass(frozen=True, slots=True)
class AccountFile:
    """A plain /etc/passwd or /etc/group: its permission bits and who owns it."""

    mode: int
    uid: int
    gid: int


_MOUNT_POINTS = ("dev", "proc", "sys")
MAX_ACCOUNT_FILE = 4 << 20
"""Bytes of an /etc/passwd or /etc/group that we read; larger ones are refused."""


def open_in(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Open ``path`` as seen from ``root`` as "/"; the descriptor is close-on-exec. Raises OSError."""
    return _open(root, path, flags, syscalls.RESOLVE_IN_ROOT)


def _open(root: Path, path: str, flags: int, resolve: int) -> int:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.openat2(root_fd, path, flags, resolve | syscalls.RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(root_fd)


def read_file(root: Path, path: str, limit: int) -> bytes | None:
    """Content of a regular file, None when it (or a directory on the way) doesn't exist. Blocking.

    Raises LimitExceeded above ``limit`` bytes, InvalidRequest for what is no regular file, Denied, HostError.
    """
    return _read(root, path, syscalls.RESOLVE_IN_ROOT, limit, f"{path} in the container's root")


def read_beneath(directory: Path, path: str, limit: int) -> bytes | None:
    """Content of a regular file below a directory of the host, None when it doesn't exist. Blocking.

    ``path`` is relative; a symbolic link or ".." that leads out of ``directory`` is refused, not reinterpreted. Raises as
    ``read_file``.
    """
    return _read(directory, path, syscalls.RESOLVE_BENEATH, limit, f"{path} below {directory}")


def _read(root: Path, path: str, resolve: int, limit: int, name: str) -> bytes | None:
    try:
        fd = _open(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise _translated(exc, name) from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest(f"{name} is not a regular file")
        return _read_up_to(fd, limit, name)
    except OSError as exc:
        raise _translated(exc, name) from exc
    finally:
        os.close(fd)


def _read_up_to(fd: int, limit: int, name: str) -> bytes:
    chunks = bytearray()
    while chunk := os.read(fd, min(1 << 20, limit + 1 - len(chunks))):
        chunks += chunk
        if len(chunks) > limit:
            raise LimitExceeded(f"{name} is larger than {limit} bytes")
    return bytes(chunks)


def _translated(exc: OSError, name: str) -> Denied | HostError | InvalidRequest:
    if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EXDEV):
        return InvalidRequest(f"{name} can't be followed: {os.strerror(exc.errno)}")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"{name}: {os.strerror(exc.errno)}")
    return HostError(f"can't read {name}: {exc.strerror}", errno=exc.errno)


def check_mount_points(root: Path) -> None:
    """See that /dev, /proc and /sys of a root file system are directories or absent. Blocks. Raises InvalidRequest naming what isn't.

    Before it enters the root, a runtime may follow a link there on the host (CVE-2026-41579, CVE-2026-47766, CVE-2023-27561).
    """
    wrong = [f"/{name}" for name in _MOUNT_POINTS if os.path.lexists(root / name) and not stat.S_ISDIR(os.lstat(root / name).st_mode)]
    if wrong:
        raise InvalidRequest(f"the image's {' and '.join(wrong)} must be a directory: a runtime would follow it out of the image")


async def read_accounts(root: Path) -> tuple[bytes, bytes]:
    """/etc/passwd and /etc/group of a mounted rootfs, b"" where absent, read in a worker thread."""

    def read() -> tuple[bytes, bytes]:
        passwd = read_file(root, "/etc/passwd", MAX_ACCOUNT_FILE)
        return passwd or b"", read_file(root, "/etc/group", MAX_ACCOUNT_FILE) or b""

    return await anyio.to_thread.run_sync(read)


async def look_at_account_file(root: Path, path: str) -> AccountFile | None:
    """Mode and owner of a plain file that is reached without any symbolic link, None for anything else."""
    return await anyio.to_thread.run_sync(_look, root, path)


def _look(root: Path, path: str) -> AccountFile | None:
    try:
        fd = _open(root, path, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise _translated(exc, f"{path} in the container's root") from exc
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return AccountFile(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) if stat.S_ISREG(found.st_mode) else None
