"""Attributes of directories that a layer's tar did not list, copied from the layers below. Blocks.

In an overlay the topmost directory of a name decides owner, mode and attributes. One that exists only because a file lies
in it must therefore look like the one it covers. Which they are, the layer's listing tells; there may be many, so they are read from there
one by one. Paths come from hostile archives: no link is followed, on any component.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bridge.errors import HostError
from bridge.images import listing
from bridge.images.layerfiles import allowed_xattr
from bridge.images.listing import LISTING
from bridge.images.unpack import FILES, TAR_LOG

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_BLOCK = 4096
_CHUNK = 1 << 16
_HIDDEN = {errno.ENOTDIR, errno.ELOOP}


def copy_attributes(directory: Path, implicit: int, lowers: Sequence[Path]) -> None:
    """Give each of the ``implicit`` directories of the layer in ``directory`` the looks of the one it covers in ``lowers``, if any.

    ``lowers`` are the files of the layers below, topmost first. Raises HostError when the listing can't be read.
    """
    for path in _implicit(directory, implicit):
        with _walk(directory / FILES, path) as (target, _):
            if target is None or _is_opaque(target):
                continue
            for lower in lowers:
                with _walk(lower, path) as (source, hides):
                    if source is not None:
                        _copy(source, target)
                if source is not None or hides:
                    break


def complete(directory: Path, implicit: int) -> tuple[str, int, int]:
    """Append to the listing of the layer in ``directory`` what its ``implicit`` directories look like now, in the listing's order.

    Its digest, and the bytes and inodes on disk of what lies there beside the files. Raises HostError when the listing can't be read.
    """
    with (directory / LISTING).open("r+b") as file:
        file.seek(0, os.SEEK_END)
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for path in _implicit(directory, implicit):
                packed.write(_record(directory / FILES, path))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sizes = [(directory / name).stat().st_size for name in (LISTING, TAR_LOG)]
    return f"sha256:{digest}", sum(-(-size // _BLOCK) * _BLOCK for size in sizes) + directory.stat().st_blocks * 512, len(sizes) + 1


def _implicit(directory: Path, count: int) -> Iterator[bytes]:
    """The directories that the listing in ``directory`` does not know the looks of; there are ``count``."""
    if not count:
        return
    try:
        with gzip.open(directory / LISTING) as file:
            # read1 does not look ahead: behind what was listed there may be something half written.
            for looks, path, _ in listing.parse(iter(partial(file.read1, _CHUNK), b"")):
                if looks == listing.LATER:
                    yield path
                    count -= 1
                    if not count:
                        return
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise HostError(f"the listing in {directory} can't be read: {exc}") from exc
    raise HostError(f"the listing in {directory} lacks {count} directories")


def _record(layer: Path, path: bytes) -> bytes:
    with _walk(layer, path) as (target, _):
        if target is None:
            return b""
        return b"%b\0%b\0\0" % (listing.looks(target, os.fstat(target), dated=False), path)


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
