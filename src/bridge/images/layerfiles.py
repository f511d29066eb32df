"""Writing the content and attributes of one file of a layer, and removing trees. Plain system calls; runs in the unpacking child."""

from __future__ import annotations

import errno
import os

from bridge.images import tarstream
from bridge.images.tarstream import Member, TarReader

_TIME_LIMIT = 1 << 62


def allowed_xattr(name: bytes) -> bool:
    """Whether a layer may set this attribute. Not ``trusted.*``: overlayfs obeys those; not labels of the host's security modules."""
    if name.startswith(b"user."):
        return not name.startswith(b"user.overlay.")
    return name in (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")


def write(fd: int, piece: memoryview) -> None:
    """Write all of ``piece``."""
    while piece:
        piece = piece[os.write(fd, piece) :]


def write_sparse(fd: int, member: Member, reader: TarReader) -> None:
    """Write the segments of a sparse file, leaving holes between them."""
    segments = iter(member.segments or ())
    left = 0
    for content in reader.content():
        piece = content
        while piece:
            while not left:
                offset, left = next(segments)
                os.lseek(fd, offset, os.SEEK_SET)
            part = piece[:left]
            write(fd, part)
            left -= len(part)
            piece = piece[len(part) :]
    os.ftruncate(fd, member.real_size)


def set_attributes(target: bytes | int, member: Member) -> int:
    """Owner, then mode (chown clears set-id bits), then xattrs (chown drops capabilities), then times; how many xattrs were left out."""
    is_fd = isinstance(target, int)
    refused = 0
    if member.uid or member.gid:
        os.chown(target, member.uid, member.gid, follow_symlinks=is_fd)
    link = member.type == tarstream.SYMLINK
    if not link:
        os.chmod(target, member.mode)
    for name, value in member.xattrs:
        if link or not allowed_xattr(name) or not _set_xattr(target, name, value):
            refused += 1
    set_time(target, member.mtime, follow_symlinks=is_fd)
    return refused


def _set_xattr(target: bytes | int, name: bytes, value: bytes) -> bool:
    try:
        os.setxattr(target, name, value)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:  # the file system has none of this kind; peers leave it out too
            return False
        raise
    return True


def set_time(target: bytes | int, mtime: int, *, follow_symlinks: bool) -> None:
    """Set access and modification time to ``mtime`` ns, clamped to what the call takes."""
    when = max(-_TIME_LIMIT, min(mtime, _TIME_LIMIT))
    os.utime(target, ns=(when, when), follow_symlinks=follow_symlinks)


def remove_tree(top: bytes) -> int:
    """Remove the directory ``top`` with all below it, however deep; how many entries that were."""
    directories = [top]
    removed = 0
    for directory in directories:  # grows while it is walked
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                else:
                    os.unlink(entry.path)
                    removed += 1
    for directory in reversed(directories):
        os.rmdir(directory)
    return removed + len(directories)
