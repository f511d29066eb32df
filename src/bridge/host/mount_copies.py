"""Copies of mounts with other attributes, attached elsewhere: what a bind mount can't be told with mount(2) alone.

A copy is made detached (open_tree), changed while nobody can see it (mount_setattr), and then attached (move_mount), so
there is no moment at which it is writable or wrongly owned. It never propagates: neither what happens below the original
nor the copy's own unmount reaches the other side. Needs Linux ≥ 5.12; id-mapped copies need a file system
that allows it, else the kernel says EINVAL.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio.to_thread

from bridge.errors import HostError
from bridge.host import syscalls

_AT_FDCWD = -100


def available() -> bool:
    """Whether this kernel and this process can make such copies: one is made, of "/", and thrown away. Blocks."""
    try:
        copy = syscalls.open_tree(_AT_FDCWD, "/", recursive=False)
        try:
            syscalls.mount_setattr(copy, set_attributes=syscalls.MOUNT_ATTR_RDONLY, propagation=syscalls.MS_PRIVATE)
        finally:
            os.close(copy)
    except OSError:
        return False
    return True


async def attach(
    source: Path | int,
    target: Path,
    *,
    recursive: bool = True,
    read_only: bool = False,
    user_namespace: int | None = None,
    attributes: int = 0,
) -> None:
    """Attach a copy of the mount at ``source`` (a path, or a descriptor opened with O_PATH) at ``target``, of the same kind.

    ``read_only`` holds for every mount of a ``recursive`` copy. ``user_namespace`` is a descriptor of the user namespace by
    whose mapping owners are seen. ``attributes`` are further MOUNT_ATTR_* bits. Raises HostError; then nothing is attached.
    """
    flags = attributes | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
    try:
        await anyio.to_thread.run_sync(_attach, source, target, recursive, flags, user_namespace)
    except OSError as exc:
        raise HostError(f"{exc.strerror} ({source} at {target})", errno=exc.errno) from exc


def _attach(source: Path | int, target: Path, recursive: bool, flags: int, user_namespace: int | None) -> None:
    at, name = (source, "") if isinstance(source, int) else (_AT_FDCWD, os.fspath(source))
    copy = syscalls.open_tree(at, name, recursive=recursive)
    try:
        syscalls.mount_setattr(copy, propagation=syscalls.MS_PRIVATE, recursive=recursive)
        if flags:
            syscalls.mount_setattr(copy, set_attributes=flags, recursive=recursive)
        if user_namespace is not None:
            syscalls.mount_setattr(copy, set_attributes=syscalls.MOUNT_ATTR_IDMAP, userns_fd=user_namespace, recursive=recursive)
        syscalls.move_mount(copy, target)
    finally:
        os.close(copy)
