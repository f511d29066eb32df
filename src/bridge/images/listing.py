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

from bridge.images.layerfiles import allowed_xattr

LISTING = "files.gz"
LATER = b"?"
_READ = 1 << 20
_KINDS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l", stat.S_IFIFO: b"p", stat.S_IFCHR: b"c"}
_HAVE_XATTRS = (stat.S_IFREG, stat.S_IFDIR)
_OVERLAY = b"trusted.overlay."

Content = Callable[[bytes], bytes]
"""The digest of the content of the regular file at a path."""


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


def walk(totals: list[int]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path below the current directory, b"" first, then depth first by name; ``totals`` counts bytes on disk and inodes.

    The kernel keeps these paths below PATH_MAX: that is how they were made.
    """
    todo = [b""]
    linked: set[int] = set()
    while todo:
        path = todo.pop()
        found = os.lstat(path or b".")
        if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode) or found.st_ino not in linked:
            totals[0] += found.st_blocks * 512
            totals[1] += 1
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            linked.add(found.st_ino)
        yield path, found
        if stat.S_ISDIR(found.st_mode):
            names = sorted(os.listdir(path or b"."), reverse=True)
            todo += [path + b"/" + name for name in names] if path else names


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


def records(log_digest: bytes, implicit: Iterable[bytes], digest: Content) -> Iterator[bytes]:
    """The listing of the layer that is the current directory."""
    yield b"%b\0\0\0" % log_digest
    unknown = frozenset(implicit)
    for path, found in walk([0, 0]):
        yield record(path, found, digest, later=path in unknown)
