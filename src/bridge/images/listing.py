"""What a layer's files look like, one record each, in an order that is always the same: made when it is unpacked, compared by a check.

A record is its looks, its path and, for a symbolic link, its target, each ended by NUL. Looks are a letter for the kind, then mode,
owner, group, size, time of modification (ns), digest of extended attributes and digest of the content ("-" where there is none: the diff
id vouches for it). A directory that the tar did not list gets its looks at commit, from the layers below: its record has "?" for looks, and
a second record at the end. The first record is the digest of the tar log. Runs in the unpacking child: it imports next to nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

from bridge.images import sorted_names
from bridge.images.layerfiles import allowed_xattr

LISTING = "files.gz"
LATER = b"?"
_READ = 1 << 20
_KINDS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l", stat.S_IFIFO: b"p", stat.S_IFCHR: b"c"}
_HAVE_XATTRS = (stat.S_IFREG, stat.S_IFDIR)
_OVERLAY = b"trusted.overlay."

Content = Callable[[bytes], bytes]
"""The digest of the content of the regular file at a path."""

Entry = tuple[bytes, os.stat_result, bool]
"""A path, what it is, and whether it is a directory whose looks are not known yet."""


def no_content(path: bytes) -> bytes:
    """For layers whose diff id can be computed again."""
    del path
    return b"-"


def content(path: bytes) -> bytes:
    """sha256 of the file's content, in hex."""
    digest = sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while piece := os.read(fd, _READ):
            digest.update(piece)
    finally:
        os.close(fd)
    return digest.hexdigest().encode()


def walk() -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path below the current directory, b"" first, then depth first by name. Takes little memory, however much there is.

    The kernel keeps these paths below PATH_MAX: that is how they were made.
    """
    yield b"", os.lstat(b".")
    todo = [(b"", sorted_names.of(b"."))]
    while todo:
        prefix, names = todo[-1]
        for name in names:
            path = prefix + name
            found = os.lstat(path)
            yield path, found
            if stat.S_ISDIR(found.st_mode):
                todo.append((path + b"/", sorted_names.of(path)))
                break
        else:
            todo.pop()


class Usage:
    """What files take on disk: each ``add``ed once for each of its names, and an inode counts once."""

    def __init__(self) -> None:
        self.bytes = self.inodes = 0
        self._linked: set[int] = set()

    def add(self, found: os.stat_result) -> None:
        """Count one path."""
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        self.bytes += found.st_blocks * 512
        self.inodes += 1


def looks(place: bytes | int, found: os.stat_result, digest: Content = no_content, *, dated: bool = True) -> bytes:
    """The first part of a record. Size and content count for regular files only, mode not for links, times not for whiteouts.

    Nor do they when not ``dated``: a directory that the tar does not list may have got its time when it was made.
    """
    kind = stat.S_IFMT(found.st_mode)
    size, data = (found.st_size, digest(place)) if kind == stat.S_IFREG and isinstance(place, bytes) else (0, b"-")
    xattrs = _xattrs(place) if kind in _HAVE_XATTRS else b"-"
    changed = found.st_mtime_ns if dated and kind != stat.S_IFCHR else 0
    mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(found.st_mode)
    return b"%b %o %d %d %d %d %b %b" % (_KINDS.get(kind, b"?"), mode, found.st_uid, found.st_gid, size, changed, xattrs, data)


def _xattrs(place: bytes | int) -> bytes:
    """A digest of the attributes that a layer may have. Not labels: a security module may change them at any time."""
    names = [os.fsencode(name) for name in os.listxattr(place)]
    kept = sorted(name for name in names if allowed_xattr(name) or name.startswith(_OVERLAY))
    if not kept:
        return b"-"
    digest = sha256()
    for name in kept:
        value = os.getxattr(place, name)
        digest.update(b"%d %b %d %b" % (len(name), name, len(value), value))
    return digest.hexdigest()[:32].encode()


def record(path: bytes, found: os.stat_result, digest: Content = no_content, *, later: bool = False) -> bytes:
    """The record of one path; ``later`` for a directory whose looks are not known yet."""
    target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else b""
    return b"%b\0%b\0%b\0" % (LATER if later else looks(path or b".", found, digest), path, target)


def records(log_digest: bytes, entries: Iterable[Entry], digest: Content) -> Iterator[bytes]:
    """The listing of the layer that is the current directory and has these ``entries``."""
    yield b"%b\0\0\0" % log_digest
    for path, found, later in entries:
        yield record(path, found, digest, later=later)


def parse(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The records in ``chunks`` of a listing: looks, path and target."""
    left = b""
    for chunk in chunks:
        *fields, left = (left + chunk).split(b"\0")
        whole = len(fields) // 3 * 3
        yield from zip(fields[0:whole:3], fields[1:whole:3], fields[2:whole:3], strict=True)
        left = b"\0".join([*fields[whole:], left])
