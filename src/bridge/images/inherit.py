"""Attributes of directories that a layer's tar did not list, copied from the layers below. Blocks.

In an overlay the topmost directory of a name decides owner, mode and attributes. One that exists only because a file lies
in it must therefore look like the one it covers. Paths come from hostile archives: no link is followed, on any component.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bridge.images.layerfiles import allowed_xattr

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
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
