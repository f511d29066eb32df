"""Mounts: overlay, bind, unmount, and what /proc/self/mountinfo says.

The system calls block, so each runs in a worker thread. An overlay of many layers must fit its option string into one
page: the names are therefore relative to the directory that all of them share, and a thread with a working directory of its
own (unshare(CLONE_FS)) makes the call. That works on every kernel, unlike fsconfig's ``lowerdir+`` (Linux ≥ 6.8).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from bridge.errors import HostError, LimitExceeded
from bridge.host import syscalls
from bridge.host.selinux import with_context

T = TypeVar("T")
_CLONE_FS = 0x200
_PAGE = 4096
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_NOT_MOUNTED = {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)). ``propagation`` holds the optional fields, such as "shared:1"."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: Sequence[str]
    propagation: Sequence[str]
    fstype: str
    source: str
    super_options: Sequence[str]


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in ``text``, in its order. A line that is not as documented is left out."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(tail) < 3 or not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        mounts.append(
            Mount(
                id=int(fields[0]),
                parent=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                target=_unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                propagation=tuple(fields[6:]),
                fstype=tail[0],
                source=_unescape(tail[1]),
                super_options=tuple(tail[2].split(",")),
            )
        )
    return mounts


def _unescape(name: str) -> str:
    if "\\" not in name:
        return name
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), os.fsencode(name)))


def read_mountinfo() -> list[Mount]:
    """The mounts of this process's namespace. Blocks."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def below(mounts: Iterable[Mount], top: Path) -> list[Mount]:
    """Those of ``mounts`` at or under ``top``, in the order in which they must be unmounted: deepest and newest first."""
    name = os.fspath(top)
    found = [m for m in mounts if m.target == name or m.target.startswith(name.rstrip("/") + "/")]
    found.reverse()  # the sort is stable: of mounts stacked on one target the newest stays first
    return sorted(found, key=lambda m: -m.target.count("/"))


def _escape(name: str) -> str:
    return re.sub(r"([\\:,])", r"\\\1", name)


def overlay_options(lowers: Sequence[Path], upper: Path | None, work: Path | None, context: str = "") -> tuple[Path, str]:
    """The directory to stand in and the option string for an overlay of ``lowers`` (topmost first).

    Raises LimitExceeded when the string passes one page even with relative names.
    """
    everything = [*lowers, *(path for path in (upper, work) if path is not None)]
    stand = Path(os.path.commonpath([path.parent for path in everything]))
    names = [_escape(os.fspath(path.relative_to(stand))) for path in everything]
    options = "lowerdir=" + ":".join(names[: len(lowers)])
    if upper is not None and work is not None:
        options += f",upperdir={names[-2]},workdir={names[-1]}"
    options = with_context(options, context)
    if len(options.encode()) >= _PAGE:
        raise LimitExceeded(f"{len(lowers)} layers need {len(options)} bytes of mount options; the kernel takes {_PAGE - 1}")
    return stand, options


async def mount_overlay(
    lowers: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    target: Path,
    *,
    prepare: Callable[[], bool] = lambda: True,
    context: str = "",
) -> None:
    """Mount an overlay of the absolute directories ``lowers`` (topmost first) at ``target``; writable when ``upper`` is given.

    Without ``upper`` the mount is read-only; a single layer is then a read-only bind mount, for the kernel
    wants two (with ``context`` the caller gives an empty one more).
    ``prepare`` runs in the mounting thread before (it may make the directories, and returns False when nothing is to be
    mounted), which saves a change of threads. ``context`` is the SELinux label of all files in the mount. Raises HostError, LimitExceeded.
    """
    if upper is None and len(lowers) == 1 and not context:
        if await anyio.to_thread.run_sync(prepare):
            await bind(lowers[0], target, read_only=True)
        return
    stand, options = overlay_options(lowers, upper, work, context)
    flags = 0 if upper is not None else syscalls.MS_RDONLY

    def call() -> None:
        if prepare():
            syscalls.unshare(_CLONE_FS)
            os.chdir(stand)
            syscalls.mount("overlay", target, "overlay", flags, options)

    try:
        await _in_own_thread(call)
    except OSError as exc:
        raise _host_error(exc) from exc


async def _in_own_thread(call: Callable[[], None]) -> None:
    """Run ``call`` in a thread that ends with it: what it changes for itself, such as its working directory, is nobody else's."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    failures: list[OSError] = []

    def work() -> None:
        try:
            call()
        except OSError as exc:
            failures.append(exc)
        finally:
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name="mount").start()
    with anyio.CancelScope(shield=True):  # the outcome must be known; a mount does not wait for anyone
        await done.wait()
    if failures:
        raise failures[0]


async def bind(source: Path, target: Path, *, read_only: bool = False, recursive: bool = False) -> None:
    """Bind-mount ``source`` at ``target`` (of the same kind: file or directory). Raises HostError."""
    await _blocking(_bind, source, target, read_only, recursive)


def _bind(source: Path, target: Path, read_only: bool, recursive: bool) -> None:
    syscalls.mount(source, target, "", syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0))
    if read_only:
        try:
            syscalls.mount("", target, "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        except OSError:
            syscalls.umount(target, syscalls.MNT_DETACH)
            raise


async def unmount(target: Path) -> None:
    """Undo every mount stacked at exactly ``target``; none there, or no such path, is success. Raises HostError.

    A busy mount is detached: it disappears from the tree now and ends with its last user.
    """
    await _blocking(_unmount, target)


async def unmount_each(directory: Path) -> None:
    """``unmount`` what is mounted at the entries of ``directory``, with all below; no such directory is success. Raises HostError."""
    await _blocking(_unmount_each, directory)


def _unmount_each(directory: Path) -> None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        _unmount(directory / name)


async def of_descriptor(fd: int) -> Mount:
    """The mount that the file behind ``fd`` was reached through. Asks the file system nothing. Raises HostError."""
    try:
        found = await anyio.to_thread.run_sync(_of_descriptor, fd)
    except OSError as exc:
        raise _host_error(exc) from exc
    if found is None:
        raise HostError("its mount is not in this mount namespace")
    return found


def _of_descriptor(fd: int) -> Mount | None:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if ":" in line)
    number = int(fields["mnt_id"])
    return next((mount for mount in read_mountinfo() if mount.id == number), None)


async def unmount_and(target: Path, then: Callable[[], T]) -> T:
    """``unmount``, and in the same thread what comes ``then``, whose result is returned: saves a change of threads. Raises HostError."""

    def call() -> T:
        _unmount(target)
        return then()

    try:
        return await anyio.to_thread.run_sync(call)
    except OSError as exc:
        raise _host_error(exc) from exc


def _unmount(target: str | Path) -> None:
    while True:
        try:
            _umount_once(target)
        except OSError as exc:
            if exc.errno in _NOT_MOUNTED:
                return
            raise


def _umount_once(target: str | Path) -> None:
    try:
        syscalls.umount(target, syscalls.UMOUNT_NOFOLLOW)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        syscalls.umount(target, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)


async def unmount_tree(top: Path) -> None:
    """Undo every mount at or under ``top``, deepest first; none is success. Raises HostError."""
    await _blocking(_unmount_tree, top)


def _unmount_tree(top: Path) -> None:
    for mount in below(read_mountinfo(), top):
        _unmount(mount.target)


async def _blocking(call: Callable[..., None], *args: object) -> None:
    """Run ``call`` in a worker thread; an OSError becomes HostError. Not abandoned on cancellation: its outcome must be known."""
    try:
        await anyio.to_thread.run_sync(call, *args)
    except OSError as exc:
        raise _host_error(exc) from exc


def _host_error(exc: OSError) -> HostError:
    where = f" ({exc.filename})" if exc.filename else ""
    return HostError(f"{exc.strerror}{where}", errno=exc.errno)
