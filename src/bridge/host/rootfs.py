"""Read files inside a container's root filesystem (or below a configured directory) without ever leaving it.

openat2(2) with RESOLVE_IN_ROOT resolves links and ".." as if the directory were "/", in the kernel, so no race with a
hostile image can lead out. Needs Linux ≥ 5.6. Files are opened with O_NONBLOCK and must be regular: a FIFO or a device
in an image can't make the server wait.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import anyio.to_thread

from bridge.errors import Denied, HostError, InvalidRequest, LimitExceeded
from bridge.host import syscalls

MAX_ACCOUNT_FILE = 4 << 20
"""Bytes of an /etc/passwd or /etc/group that we read; larger ones are refused."""


def open_in(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Open ``path`` as seen from ``root`` as "/"; the descriptor is close-on-exec. Raises OSError."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.openat2(root_fd, path, flags, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(root_fd)


def read_file(root: Path, path: str, limit: int) -> bytes | None:
    """Content of a regular file, None when it (or a directory on the way) doesn't exist. Blocking.

    Raises LimitExceeded above ``limit`` bytes, InvalidRequest for what is no regular file, Denied, HostError.
    """
    try:
        fd = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise _translated(exc, path) from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest(f"{path} in the container's root is not a regular file")
        return _read_up_to(fd, limit, path)
    except OSError as exc:
        raise _translated(exc, path) from exc
    finally:
        os.close(fd)


def _read_up_to(fd: int, limit: int, path: str) -> bytes:
    chunks = bytearray()
    while chunk := os.read(fd, min(1 << 20, limit + 1 - len(chunks))):
        chunks += chunk
        if len(chunks) > limit:
            raise LimitExceeded(f"{path} in the container's root is larger than {limit} bytes")
    return bytes(chunks)


def _translated(exc: OSError, path: str) -> Denied | HostError | InvalidRequest:
    if exc.errno in (errno.ELOOP, errno.ENXIO):
        return InvalidRequest(f"{path} in the container's root can't be followed: {os.strerror(exc.errno)}")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"{path} in the container's root: {os.strerror(exc.errno)}")
    return HostError(f"can't read {path} in the container's root: {exc.strerror}", errno=exc.errno)


async def read_accounts(root: Path) -> tuple[bytes, bytes]:
    """/etc/passwd and /etc/group of a mounted rootfs, b"" where absent, read in a worker thread."""

    def read() -> tuple[bytes, bytes]:
        passwd = read_file(root, "/etc/passwd", MAX_ACCOUNT_FILE)
        return passwd or b"", read_file(root, "/etc/group", MAX_ACCOUNT_FILE) or b""

    return await anyio.to_thread.run_sync(read)
