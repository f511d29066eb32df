"""Layers as a user namespace sees them, without a copy and without a chown: they are shared with other pods.

One id-mapped, read-only mount shows the whole directory of layers, so its cost does not grow with the image; overlayfs takes
its lower layers below it and keeps them, so that the mount itself is gone again when the root filesystem is there. The
writable layer needs no mapping: what root of the namespace writes is stored as the host's id of it. Needs Linux ≥ 5.19
(overlayfs on id-mapped layers) and a file system that allows such mounts. Why this way: docs/adr/0008-user-namespaces.md.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bridge.errors import BridgeError, HostError
from bridge.host import mount_copies, mounts, namespaces, user_namespaces
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.images import disk
from bridge.images.disk import VIEW, Directories

_UNMOUNT_SECONDS = 30.0
_TRIAL = (IdRange(0, 100000, 65536),)


@asynccontextmanager
async def view(source: Path, home: Path, user_namespace: int) -> AsyncIterator[Callable[[Path], Path]]:
    """Show ``source`` with the owners that the namespace behind the descriptor sees, at a place in ``home`` while the block runs.

    Yields what turns a path below ``source`` into the one that is shown. Makes both directories. Raises HostError.
    """
    target = home / VIEW
    await disk.blocking(_make, home, source, target)
    try:
        await mount_copies.attach(source, target, recursive=False, read_only=True, user_namespace=user_namespace)
        yield lambda path: target / path.relative_to(source)
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _UNMOUNT_SECONDS):
            await mounts.unmount(target)


def _make(home: Path, source: Path, target: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    source.mkdir(mode=0o755, exist_ok=True)
    target.mkdir(mode=0o700, exist_ok=True)


@asynccontextmanager
async def pinned(path: Path) -> AsyncIterator[int]:
    """A descriptor of the user namespace pinned at ``path``. Raises NotFound, HostError."""
    descriptor = await anyio.to_thread.run_sync(namespaces.open_pin, path, "user")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def fault(directories: Directories) -> str:
    """Why root filesystems can't be had in a user namespace here, found by mounting one; "" when they can.

    Leaves nothing behind but rubbish that the store's sweep knows.
    """
    home = directories.scratch()
    try:
        descriptor = await user_namespaces.open_temporary(IdMaps(_TRIAL, _TRIAL))
        try:
            async with view(directories.layers, home, descriptor) as seen:
                await disk.blocking((home / "root").mkdir)
                lowers = [seen(directories.layers), home / "root"]
                await mounts.mount_overlay(lowers, None, None, home / "root")
                await mounts.unmount(home / "root")
        finally:
            os.close(descriptor)
    except HostError as exc:
        return f"{directories.layers}: this kernel or its file system can't show image layers to a user namespace: {exc.message}"
    except BridgeError as exc:
        return f"user namespaces can't be made: {exc.message}"
    finally:
        await disk.remove_tree(home)
    return ""
