"""Attributes of directories that a layer's tar did not list, copied from the layers below. Blocks.

In an overlay the topmost directory of a name decides owner, mode and attributes. One that exists only because a file lies
in it must therefore look like the one it covers. Paths come from hostile archives: no link is followed, on any component.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bridge.images import listing
from bridge.images.layerfiles import allowed_xattr
from bridge.images.listing import LISTING
from bridge.images.unpack import FILES, TAR_LOG

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_BLOCK = 4096
_HIDDEN = {errno.ENOTDIR, errno.ELOOP}


def copy_attributes(layer: Path, implicit: Iterable[bytes], lowers: Sequence[Path]) -> None:
    """Give each directory ``implicit`` of ``layer`` the looks of the one it covers in ``lowers`` (topmost first), if there is one."""
    for path in sorted(implicit, key=lambda p: -p.count(b"/")):
        with _walk(layer, path) as (target, _):
            if target is None or _is_opaque(target):
                continue
            for lower in lowers:
                with _walk(lower, path) as (source, hides):
                    if source is not None:
                        _copy(source, target)
                if source is not None or hides:
                    break


def complete(directory: Path, implicit: Iterable[bytes]) -> tuple[str, int, int]:
    """Append to the listing of the layer in ``directory`` what its ``implicit`` directories look like now, in the listing's order.

    Its digest, and the bytes and inodes on disk of what lies there beside the files.
    """
    with (directory / LISTING).open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(gzip.compress(_records(directory / FILES, implicit), mtime=0))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sizes = [(directory / name).stat().st_size for name in (LISTING, TAR_LOG)]
    return f"sha256:{digest}", sum(-(-size // _BLOCK) * _BLOCK for size in sizes) + directory.stat().st_blocks * 512, len(sizes) + 1


def _records(layer: Path, implicit: Iterable[bytes]) -> bytes:
    parts = []
    for path in sorted(implicit, key=lambda p: p.split(b"/")):
        with _walk(layer, path) as (target, _):
            if target is not None:
                parts.append(b"%b\0%b\0\0" % (listing.looks(target, os.fstat(target), dated=False), path))
    return b"".join(parts)


@contextlib.contextmanager
def _walk(top: Path, path: bytes) -> Iterator[tuple[int | None, bool]]:
    """The directory ``path`` below ``top`` as a descriptor or None, and whether ``top`` hides what lies further down."""
    fd = os.open(top, _OPEN)
    hides = _is_opaque(fd)
    found: int | None = fd
    try:
        for part in path.split(b"/") if path else ():
            try:
                deeper = os.open(part, _OPEN, dir_fd=fd)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, *_HIDDEN):
                    raise
                hides |= exc.errno in _HIDDEN
                found = None
                break
            os.close(fd)
            fd = found = deeper
            hides |= _is_opaque(fd)
        yield found, hides
    finally:
        os.close(fd)


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _copy(source: int, target: int) -> None:
    looks = os.fstat(source)
    os.fchown(target, looks.st_uid, looks.st_gid)
    os.fchmod(target, looks.st_mode & 0o7777)
    for name in os.listxattr(source):
        if allowed_xattr(os.fsencode(name)):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(looks.st_atime_ns, looks.st_mtime_ns))
