"""The file or directory that an export makes. It appears under its name when it is complete, and not at all otherwise.

An archive is written to a file without a name where the file system has such (O_TMPFILE), so that even a server that is killed
leaves nothing; else, and for a directory, beside the target under a name that begins with a dot. Blobs are written by a child
before their digest and size are known: room is left for their header. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tarfile
from pathlib import Path
from typing import Protocol

from bridge.errors import AlreadyExists, InvalidRequest

_BLOCK = 512
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_MODE = 0o600


class Target(Protocol):
    """Where an export goes."""

    def add(self, name: str, data: bytes) -> None:
        """A small file."""
        ...

    def begin(self) -> int:
        """The descriptor to which the next blob's bytes are to be written, from its current position on."""
        ...

    def end(self, name: str, size: int) -> None:
        """The blob that was begun has ``size`` bytes and is called ``name``."""
        ...

    def commit(self) -> int:
        """Make it appear, complete and on the disk; how many bytes it has. Raises AlreadyExists, OSError."""
        ...

    def discard(self) -> None:
        """Leave nothing; after ``commit`` it does nothing."""
        ...


class Archive:
    """A tar. Raises AlreadyExists, InvalidRequest, OSError."""

    def __init__(self, path: Path, *, replace: bool) -> None:
        self._name = path.name
        self._replace = replace
        self._shown = path
        self._check(path)
        self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._hidden = ""
        self._fd = -1
        try:
            self._fd = self._open(path.parent)
        except BaseException:
            os.close(self._directory)
            raise
        self._header_at = 0

    def _check(self, path: Path) -> None:
        if path.is_dir():
            raise InvalidRequest(f"{path} is a directory", field="path")
        if path.exists() and not self._replace:
            raise AlreadyExists(f"{path} exists; --force replaces it")
        if path.exists() and not path.is_file():
            raise InvalidRequest(f"{path} is no regular file", field="path")

    def _open(self, parent: Path) -> int:
        try:
            return os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
        except OSError as exc:
            if exc.errno not in _NO_TMPFILE:
                raise
        self._hidden = f".{self._name}.{secrets.token_hex(4)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._hidden, flags, _MODE, dir_fd=self._directory)

    def add(self, name: str, data: bytes) -> None:
        """See Target."""
        self.begin()
        piece = memoryview(data)
        while piece:
            piece = piece[os.write(self._fd, piece) :]
        self.end(name, len(data))

    def begin(self) -> int:
        """See Target."""
        self._header_at = os.lseek(self._fd, 0, os.SEEK_CUR)
        os.lseek(self._fd, _BLOCK, os.SEEK_CUR)
        return self._fd

    def end(self, name: str, size: int) -> None:
        """See Target."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        os.pwrite(self._fd, info.tobuf(tarfile.GNU_FORMAT), self._header_at)
        os.lseek(self._fd, self._header_at + _BLOCK + size + -size % _BLOCK, os.SEEK_SET)

    def commit(self) -> int:
        """See Target."""
        size = os.lseek(self._fd, 2 * _BLOCK, os.SEEK_CUR)
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
        if self._replace:
            self._rename()
        else:
            self._link(self._name)
            self._drop_hidden()
        os.fsync(self._directory)
        return size

    def _rename(self) -> None:
        if not self._hidden:
            hidden = f".{self._name}.{secrets.token_hex(4)}"
            self._link(hidden)
            self._hidden = hidden
        os.rename(self._hidden, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._hidden = ""

    def _link(self, name: str) -> None:
        try:  # a directory descriptor makes it linkat(2), which alone follows the link in /proc
            os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=self._directory)
        except FileExistsError as exc:
            raise AlreadyExists(f"{self._shown} exists; --force replaces it") from exc

    def _drop_hidden(self) -> None:
        if self._hidden:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._hidden, dir_fd=self._directory)
            self._hidden = ""

    def discard(self) -> None:
        """See Target."""
        if self._fd < 0:
            return
        self._drop_hidden()
        os.close(self._fd)
        os.close(self._directory)
        self._fd = -1


class Folder:
    """A directory, which must be absent or empty. Raises AlreadyExists, OSError."""

    def __init__(self, path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise AlreadyExists(f"{path} exists and is no empty directory")
        self._path = path
        self._hidden: Path | None = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._hidden.mkdir(mode=0o700)
        self._fd = -1

    @property
    def _part(self) -> Path:
        assert self._hidden is not None
        return self._hidden / "part"

    def add(self, name: str, data: bytes) -> None:
        """See Target."""
        piece, fd = memoryview(data), self.begin()
        while piece:
            piece = piece[os.write(fd, piece) :]
        self.end(name, len(data))

    def begin(self) -> int:
        """See Target."""
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        return self._fd

    def end(self, name: str, size: int) -> None:
        """See Target."""
        del size
        assert self._hidden is not None
        os.fsync(self._fd)
        self._close()
        (self._hidden / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._part.rename(self._hidden / name)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def commit(self) -> int:
        """See Target."""
        assert self._hidden is not None
        files = list(self._hidden.rglob("*"))
        for directory in [self._hidden, *(file for file in files if file.is_dir())]:
            _sync(directory)
        size = sum(file.stat().st_size for file in files if file.is_file())
        try:
            self._hidden.rename(self._path)  # over nothing, or over an empty directory
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise AlreadyExists(f"{self._path} exists and is no empty directory") from exc
        self._hidden = None
        _sync(self._path.parent)
        return size

    def discard(self) -> None:
        """See Target."""
        self._close()
        if self._hidden is not None:
            shutil.rmtree(self._hidden)
            self._hidden = None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
