"""Turns tar members into files of an overlay layer. Runs in the unpacking child, whose root directory *is* the layer.

Being confined, it may use plain paths: whatever ``..`` or links an archive has, the kernel resolves them inside the layer. It
decides what a member means for an overlay: whiteouts, repeated names, parents that the archive forgot, what is never made.

It remembers nothing of what it made, so that a layer of a million entries takes no more memory than one of ten. What must be known later
is on the disk: a character device is a whiteout, for no other is made. Each entry made in a directory changes that one's time of
modification, so what the archive says of it waits in its time of access (nothing changes that: the layer is mounted noatime).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from bridge.images import layerfiles, listing, tarstream
from bridge.images.decompress import TooBig
from bridge.images.tarstream import BadArchive, Member, TarReader

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OPAQUE_XATTR = "trusted.overlay.opaque"
_FS_BLOCK = 4096
_UNLISTED = 100_000_007 * 10**9
"""The time of access (ns) of a directory that the archive does not list: some second of 1973, as whole as every file system can keep."""
_IN_THE_WAY = (FileNotFoundError, FileExistsError, NotADirectoryError)
_FAULTS_OF_ARCHIVE = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOENT, errno.EPERM, errno.EINVAL}
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def clean(name: bytes, what: bytes) -> bytes:
    """``name`` relative to the layer's root, b"" for the root itself. A leading slash means the root, as everywhere; ``..`` is refused."""
    if b"/" not in name and name not in (b".", b".."):
        return name
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise BadArchive(f"{what!r} leaves the layer: '..' in {name!r}")
    return b"/".join(parts)


class Totals:
    """What the parent wants to know. ``exact``: the tar can be made again from log and files. ``implicit``: directories not in it."""

    __slots__ = ("bytes", "content", "devices", "entries", "exact", "implicit", "inodes", "xattrs")

    def __init__(self) -> None:
        self.bytes = self.inodes = self.entries = self.content = self.devices = self.xattrs = self.implicit = 0
        self.exact = True


class Extractor:
    """Makes the members of one layer below the current directory. ``max_bytes`` bounds the sum of file lengths, holes included."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.totals = Totals()
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def run(self, reader: TarReader) -> None:
        """Extract everything. Raises BadArchive, TooBig, and OSError for the host's own failures (disk full …)."""
        _mark_unlisted(b".")
        for member in reader:
            self.totals.entries += 1
            if self.totals.entries > self._max_entries:
                raise TooBig(f"the layer has more than {self._max_entries} entries")
            try:
                self._add(member, reader)
            except OSError as exc:
                if exc.errno in _FAULTS_OF_ARCHIVE:
                    raise BadArchive(f"{member.name!r}: {exc.strerror}") from exc
                raise

    def settled(self) -> Iterator[listing.Entry]:
        """Everything that was made, in the listing's order, once each directory has its time, which every entry made in it had changed.

        The totals are complete at the end: only now the blocks of directories are known.
        """
        for path, found in listing.walk():
            if not stat.S_ISDIR(found.st_mode):
                yield path, found, False
                continue
            self.totals.bytes += found.st_blocks * 512
            unlisted = found.st_atime_ns == _UNLISTED
            self.totals.implicit += unlisted
            when = found.st_mtime_ns if unlisted else found.st_atime_ns
            os.utime(path or b".", ns=(when, when), follow_symlinks=False)
            yield path, os.lstat(path or b"."), unlisted
        self.totals.inodes += 1

    def _add(self, member: Member, reader: TarReader) -> None:
        path = clean(member.name, member.name)
        parent, _, name = path.rpartition(b"/")
        if _WHITEOUT in path and self._special(path, parent, name):
            return
        if member.type in tarstream.REGULAR:
            self._file(path, member, reader)
        elif member.type == tarstream.DIRECTORY:
            self._directory(path, member)
        elif not path:
            raise BadArchive("the layer's root is not a directory")
        elif member.type == tarstream.SYMLINK:
            self._make(path, lambda: os.symlink(member.link, path))
            self._attributes(path, member)
        elif member.type == tarstream.HARDLINK:
            self._hardlink(path, member)
        elif member.type == tarstream.FIFO:
            self._make(path, lambda: os.mkfifo(path, 0o600))
            self._attributes(path, member)
        else:
            self.totals.devices += 1

    def _special(self, path: bytes, parent: bytes, name: bytes) -> bool:
        """Handle whiteouts; True when the member needs no more. AUFS's own metadata is left out."""
        if name == _OPAQUE:
            self._ensure(parent)
            os.setxattr(parent or b".", _OPAQUE_XATTR, b"y")
            return True
        if path.startswith(b".wh..wh.") or b"/.wh..wh." in path:
            return True
        if (b"/" + parent).find(b"/" + _WHITEOUT) >= 0:
            raise BadArchive(f"{path!r} lies below a whiteout")
        if not name.startswith(_WHITEOUT):
            return False
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise BadArchive(f"{path!r} is a whiteout of nothing")
        self._whiteout(parent + b"/" + hidden if parent else hidden)
        return True

    def _whiteout(self, path: bytes) -> None:
        self._ensure(path.rpartition(b"/")[0])
        try:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        except FileExistsError:
            # It hides only what is below, never what this layer itself adds: a directory is made opaque, the rest hides anyway.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.setxattr(path, _OPAQUE_XATTR, b"y")
        else:
            self.totals.inodes += 1

    def _file(self, path: bytes, member: Member, reader: TarReader) -> None:
        if not path:
            raise BadArchive("the layer's root is not a directory")
        self.totals.content += member.real_size
        if self.totals.content > self._max_bytes:
            raise TooBig(f"the layer's files have more than {self._max_bytes} bytes")
        try:
            fd = os.open(path, _CREATE, 0o600)
        except _IN_THE_WAY:
            self._clear(path)
            fd = os.open(path, _CREATE, 0o600)
        try:
            if member.segments is None:
                for piece in reader.content():
                    layerfiles.write(fd, piece)
            else:
                layerfiles.write_sparse(fd, member, reader)
            self._attributes(fd, member)
        finally:
            os.close(fd)
        self.totals.inodes += 1
        self.totals.bytes += -(-member.size // _FS_BLOCK) * _FS_BLOCK

    def _directory(self, path: bytes, member: Member) -> None:
        if path:
            try:
                os.mkdir(path, 0o700)
                self.totals.inodes += 1
            except FileExistsError:
                self._existing_directory(path, os.lstat(path).st_mode, 0o700)
            except _IN_THE_WAY:
                self._ensure(path)
        if member.mtime == _UNLISTED:
            member.mtime += 1
        self._attributes(path or b".", member)

    def _existing_directory(self, path: bytes, found: int, mode: int) -> None:
        if stat.S_ISDIR(found):
            return
        self._clear(path)
        os.mkdir(path, mode)
        self.totals.inodes += 1
        if stat.S_ISCHR(found):
            os.setxattr(path, _OPAQUE_XATTR, b"y")

    def _hardlink(self, path: bytes, member: Member) -> None:
        target = clean(member.link, member.name)
        if target == path:
            raise BadArchive(f"{path!r} is a hard link to itself")
        try:
            source = os.lstat(target)
        except FileNotFoundError:
            raise BadArchive(f"{path!r} is a hard link to {target!r}, which this layer does not have") from None
        if stat.S_ISCHR(source.st_mode):
            raise BadArchive(f"{path!r} is a hard link to a whiteout")
        self._make(path, lambda: os.link(target, path, follow_symlinks=False))
        self.totals.inodes -= 1

    def _make(self, path: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except _IN_THE_WAY:
            self._clear(path)
            make()
        self.totals.inodes += 1

    def _clear(self, path: bytes) -> None:
        """Make the way free for a new ``path``: its parents exist, itself does not. The last entry of a name wins."""
        self._ensure(path.rpartition(b"/")[0])
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISCHR(found.st_mode):
            self.totals.exact = False
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(path)
            self.totals.inodes -= 1
            return
        self.totals.inodes -= layerfiles.remove_tree(path)

    def _ensure(self, path: bytes) -> None:
        """Make the directories of ``path`` that the archive did not list; the parent copies their attributes from lower layers."""
        missing = []
        while path:
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                found = os.lstat(path).st_mode
                if stat.S_ISCHR(found):
                    self._existing_directory(path, found, 0o755)
                    _mark_unlisted(path)
                break
            except (FileNotFoundError, NotADirectoryError):
                missing.append(path)
                path = path.rpartition(b"/")[0]
                continue
            _mark_unlisted(path)
            self.totals.inodes += 1
            break
        for path in reversed(missing):
            os.mkdir(path, 0o755)
            _mark_unlisted(path)
            self.totals.inodes += 1

    def _attributes(self, target: bytes | int, member: Member) -> None:
        self.totals.xattrs += layerfiles.set_attributes(target, member)


def _mark_unlisted(path: bytes) -> None:
    os.utime(path, ns=(_UNLISTED, _UNLISTED))
