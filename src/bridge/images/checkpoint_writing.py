"""What is written of a checkpoint: the difference that a writable layer makes, and the archive.

It is read in a thread: nobody can change it meanwhile, and no link in it is followed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import anyio.from_thread

from bridge.images.layerfiles import allowed_xattr
from bridge.ports.checkpoints import DELETED, DIFF

_OPAQUE, _REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"


def write_diff(upper: Path, lowers: Sequence[Path], directory: Path) -> None:
    """DIFF and DELETED of the writable layer ``upper`` over ``lowers``, into ``directory``. Raises OSError."""
    deleted: list[str] = []
    with tarfile.open(directory / DIFF, "x", format=tarfile.PAX_FORMAT, errorlevel=2, errors="surrogateescape") as archive:
        linked: dict[int, str] = {}
        for name, found in walk(upper):
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                deleted.append("/" + name)
            elif not stat.S_ISSOCK(found.st_mode):
                anyio.from_thread.check_cancelled()
                if stat.S_ISDIR(found.st_mode):
                    deleted += _hidden(upper, name, lowers)
                _add(archive, upper / name, name, found, linked)
    (directory / DELETED).write_text(json.dumps(deleted))


def walk(upper: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """All below ``upper``, directories before what is in them."""
    todo = [prefix]
    while todo:
        at = todo.pop()
        for name in sorted(os.listdir(upper / at)):
            path = f"{at}/{name}" if at else name
            found = os.lstat(upper / path)
            yield path, found
            if stat.S_ISDIR(found.st_mode):
                todo.append(path)


def _hidden(upper: Path, name: str, lowers: Sequence[Path]) -> list[str]:
    """What a directory that took the place of the image's hides of it."""
    attributes = os.listxattr(upper / name, follow_symlinks=False)
    if _REDIRECT in attributes:
        raise OSError(None, f"{name} was renamed in a way that a checkpoint can't tell")
    if _OPAQUE not in attributes:
        return []
    own, names = set(os.listdir(upper / name)), set[str]()
    for lower in lowers:
        if (lower / name).is_dir() and not (lower / name).is_symlink():
            names |= set(os.listdir(lower / name))
    return [f"/{name}/{each}" for each in sorted(names - own)]


def _add(archive: tarfile.TarFile, path: Path, name: str, found: os.stat_result, linked: dict[int, str]) -> None:
    member = archive.gettarinfo(str(path), name)
    member.uname = member.gname = ""
    member.type, member.linkname = (member.type, member.linkname) if not member.islnk() else (tarfile.REGTYPE, "")
    if stat.S_ISREG(found.st_mode):
        member.size = found.st_size
        if found.st_nlink > 1 and found.st_ino in linked:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, linked[found.st_ino], 0
        linked.setdefault(found.st_ino, name)
    member.pax_headers = {"mtime": f"{found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09d}", **_attributes(path)}
    if not member.isreg():
        archive.addfile(member)
        return
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
        archive.addfile(member, _Reading(stream))


class _Reading:
    """Ends with the call for which it is read: who gives up, or stops a container that stands still, is not to wait for gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        anyio.from_thread.check_cancelled()
        return self._stream.read(size)


def _attributes(path: Path) -> dict[str, str]:
    if path.is_symlink():
        return {}
    names = [name for name in os.listxattr(path, follow_symlinks=False) if allowed_xattr(os.fsencode(name))]
    return {f"SCHILY.xattr.{name}": os.getxattr(path, name, follow_symlinks=False).decode("utf-8", "surrogateescape") for name in names}


def pack(directory: Path, location: Path) -> None:
    """Make the archive ``location`` of ``directory``, as a whole or not at all. Raises OSError."""
    fresh = location.with_name(f".{location.name}.{uuid.uuid4().hex[:8]}")
    file, named = _fresh_file(fresh)
    try:
        with open(file, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, found in walk(directory):
                    _add(archive, directory / name, name, found, {})
            stream.flush()
            os.fsync(stream.fileno())
            if not named:
                _link(stream.fileno(), fresh)
        os.replace(fresh, location)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _fresh_file(path: Path) -> tuple[int, bool]:
    """One without a name, which is gone if the server ends amid the work; where the file system has none, named ``path``: then True."""
    try:
        return os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600), False
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), True


def _link(file: int, path: Path) -> None:
    """Give a file without a name one. Raises OSError."""
    own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(file), path, src_dir_fd=own, follow_symlinks=True)
    finally:
        os.close(own)
