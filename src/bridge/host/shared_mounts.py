"""Directories whose later mounts spread to mount namespaces that were copied from this one, as a VM's shim has (mount_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

from anyio import to_thread

from bridge.errors import HostError
from bridge.host import mounts, syscalls


async def share(directory: Path) -> None:
    """See the module docstring. Repeatable. Raises HostError; then nothing is mounted.

    Where ``directory`` lies on a shared mount there is nothing to do; else it becomes a shared mount of its own, which
    ``mounts.unmount_tree`` undoes.
    """
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = await mounts.of_descriptor(fd)
        finally:
            os.close(fd)
        if not any(tag.startswith("shared:") for tag in found.propagation):
            await to_thread.run_sync(_make_shared, directory)
    except OSError as exc:
        raise HostError(f"can't make {directory} a shared mount: {exc.strerror}", errno=exc.errno) from exc


def _make_shared(directory: Path) -> None:
    syscalls.mount(directory, directory, "", syscalls.MS_BIND)
    try:
        syscalls.mount("", directory, "", syscalls.MS_SHARED)
    except OSError:
        syscalls.umount(directory, syscalls.MNT_DETACH)
        raise
