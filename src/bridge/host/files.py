"""Small file-system steps, each one hop to a worker thread: make, write, remove, tmpfs.

Removal never crosses a mount: a tree that still has something mounted below it is refused, so that files of a container's
volume can't be deleted through its bind mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from bridge.errors import HostError
from bridge.host import syscalls
from bridge.host.selinux import with_context

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def make_dir(path: Path, mode: int = 0o700, *, group: int | None = None) -> None:
    """Make ``path``, of ``group`` if one is given, and its parents (0711) unless they are there. Raises HostError."""
    await anyio.to_thread.run_sync(_make_dir, path, mode, group)


async def write_files(directory: Path, contents: Mapping[str, str], *, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Make ``directory`` (0711) and write each file into it, owned by ``owner`` (uid, gid). Raises HostError naming the path."""
    await anyio.to_thread.run_sync(_write_files, directory, contents, mode, owner)


async def write_owned(path: Path, content: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Write a file that isn't there yet, its directory (0711) included, with this mode and owner. Raises HostError."""
    await anyio.to_thread.run_sync(_write_owned, path, content, mode, uid, gid)


async def replace(path: Path, content: str, *, mode: int = 0o644) -> None:
    """Put a file in place of what is there, its directory included; readers and crashes find the old one or the new. Raises HostError."""
    await anyio.to_thread.run_sync(_replace, path, content, mode)


async def mount_tmpfs(target: Path, *, size: int, mode: int = 0o1777, context: str = "", owner: tuple[int, int] | None = None) -> None:
    """Mount a tmpfs of ``size`` bytes, nosuid, nodev, noexec, on a new directory.

    ``context`` is the SELinux label of all in it; its root is ``owner``'s (uid, gid).
    """
    await anyio.to_thread.run_sync(_mount_tmpfs, target, size, mode, context, owner)


async def read_text(path: Path, limit: int = 1 << 20) -> str:
    """The file's text, at most ``limit`` bytes; absent is "". Raises HostError."""
    return await anyio.to_thread.run_sync(_read_text, path, limit)


async def remove_tree(path: Path) -> None:
    """Delete a directory with all in it; absent is success. Raises HostError when something is still mounted below."""
    await anyio.to_thread.run_sync(_remove_tree, path)


async def make_mount_point(path: Path, *, directory: bool) -> None:
    """Make ``path`` and its parents: a directory, or an empty file for a mount of a file. Raises HostError."""

    def make() -> None:
        _make_dir(path if directory else path.parent, 0o711)
        if not directory:
            try:
                path.touch(0o600)
            except OSError as exc:
                raise HostError(f"can't make {path}: {exc.strerror}", errno=exc.errno) from exc

    await anyio.to_thread.run_sync(make)


def _make_dir(path: Path, mode: int, group: int | None = None) -> None:
    try:
        if not path.parent.exists():
            _make_dir(path.parent, 0o711)
        path.mkdir(mode=mode, exist_ok=True)
        if group is not None:
            os.chown(path, -1, group)
    except OSError as exc:
        raise HostError(f"can't make directory {path}: {exc.strerror}", errno=exc.errno) from exc


def _write_files(directory: Path, contents: Mapping[str, str], mode: int, owner: tuple[int, int] | None) -> None:
    _make_dir(directory, 0o711)
    for name, text in contents.items():
        target = directory / name
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            with open(descriptor, "w", encoding="utf-8") as stream:
                os.fchmod(descriptor, mode)
                if owner is not None:
                    os.fchown(descriptor, *owner)
                stream.write(text)
        except OSError as exc:
            raise HostError(f"can't write {target}: {exc.strerror}", errno=exc.errno) from exc


def _write_owned(path: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    _make_dir(path.parent, 0o711)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
    except OSError as exc:
        raise HostError(f"can't write {path}: {exc.strerror}", errno=exc.errno) from exc


def _replace(path: Path, content: str, mode: int) -> None:
    _make_dir(path.parent, 0o755)
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        with aside.open("x", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise HostError(f"can't write {path}: {exc.strerror}", errno=exc.errno) from exc


def _mount_tmpfs(target: Path, size: int, mode: int, context: str, owner: tuple[int, int] | None) -> None:
    _make_dir(target, 0o755)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    whose = "" if owner is None else f",uid={owner[0]},gid={owner[1]}"
    try:
        syscalls.mount("shm", target, "tmpfs", flags, with_context(f"mode={mode:o},size={size}{whose}", context))
    except OSError as exc:
        raise HostError(f"can't mount tmpfs on {target}: {exc.strerror}", errno=exc.errno) from exc


def _read_text(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc


def _remove_tree(path: Path) -> None:
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise HostError(f"can't remove {path}: {exc.strerror}", errno=exc.errno) from exc
    try:
        _empty(top)
        path.rmdir()
    except OSError as exc:
        if exc.errno in (errno.EBUSY, errno.EXDEV):
            raise HostError(f"can't remove {path}: something is still mounted below it ({exc.filename})", errno=errno.EBUSY) from exc
        raise HostError(f"can't remove {path}: {exc.strerror} ({exc.filename})", errno=exc.errno) from exc
    finally:
        os.close(top)


def _empty(directory: int) -> None:
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        # NO_XDEV refuses every mount point, also a bind mount of the same file system, which st_dev can't tell.
        inner = syscalls.openat2(directory, name, _DIRECTORY, syscalls.RESOLVE_NO_XDEV)
        try:
            _empty(inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=directory)
