"""Root filesystems of containers: an overlay of the image's layers with a writable layer in ``snapshots/<container>``.

What the writable layers take is measured by a paced walk in the background and answered from memory.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from pathlib import Path

import anyio
import anyio.to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.errors import AlreadyExists, CorruptData, HostError, InvalidRequest, NotFound
from bridge.host import mounts
from bridge.images import damage, disk, ownership
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.layers import LayerStore
from bridge.ports.images import FsUsage, Rootfs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_UPPER, _WORK, _EMPTY = "upper", "work", "empty"
_logger = log.get("images.snapshots")


class Snapshots:
    """The writable layers of one store."""

    def __init__(self, directories: Directories, catalogue: Catalogue, layers: LayerStore) -> None:
        self._directories = directories
        self._catalogue = catalogue
        self._layers = layers
        self._usage: dict[str, FsUsage] = {}
        self._owed: set[str] = set()

    async def mount(self, container: str, image: str, target: Path, *, label: str = "", user_namespace: Path | None = None) -> Rootfs:
        """Make the container's writable layer on ``image``, or find it again, and mount it at the existing directory ``target``.

        ``label`` is the SELinux label that all files in it have, whatever the layers say; "" leaves them their own.
        ``user_namespace``: see the port. Raises NotFound when the image is gone, AlreadyExists when the container stands on
        another one, HostError.
        """
        if not _NAME.fullmatch(container):
            raise InvalidRequest(f"{container!r} can't be a container id", field="container_id")
        used = self._catalogue.snapshots.get(container)
        if used is not None and used != image:
            raise AlreadyExists(f"container {container} already stands on image {used}")
        if used is not None:
            return await self.remount(container, target, label=label, user_namespace=user_namespace)
        async with Rollback(f"rootfs of {container}") as undo:
            undo.push("remove writable layer", lambda: self.remove(container, target))
            await self._catalogue.add_snapshot(container, image)
            rootfs = await self._mount(container, target, label, user_namespace)
            self._usage[container] = self._taken(0, 1)  # one empty directory: the next round may be a minute away
            undo.commit()
        return rootfs

    async def remount(self, container: str, target: Path, *, label: str = "", user_namespace: Path | None = None) -> Rootfs:
        """Mount an existing writable layer at ``target`` unless it is. Raises NotFound, HostError."""
        if container not in self._catalogue.snapshots:
            raise NotFound(f"container {container} has no writable layer")
        return await self._mount(container, target, label, user_namespace)

    async def _mount(self, container: str, target: Path, label: str, user_namespace: Path | None) -> Rootfs:
        layers = self._catalogue.images[self._catalogue.snapshots[container]].layers
        home = self._directories.snapshots / container
        lowers = [self._directories.files(layer.id) for layer in reversed(layers)]
        async with damage.noticed(self._directories, self._catalogue, layers):
            if user_namespace is None:
                await self._overlay(home, lowers or [home / _EMPTY], target, label)
            else:
                source = self._directories.layers if lowers else home / _EMPTY
                async with ownership.pinned(user_namespace) as namespace, ownership.view(source, home, namespace) as seen:
                    await self._overlay(home, [seen(path) for path in lowers or [source]], target, label)
        return Rootfs(target, home / _UPPER)

    async def _overlay(self, home: Path, lowers: list[Path], target: Path, label: str) -> None:
        prepare = functools.partial(_prepare, home, lowers, target)
        await mounts.mount_overlay(lowers, home / _UPPER, home / _WORK, target, prepare=prepare, context=label)

    async def remove(self, container: str, target: Path) -> None:
        """Unmount and delete the writable layer; absent is success. Raises HostError.

        Also one that the index does not know, as after that was lost: the caller's word that the container goes is enough.
        """
        known = container in self._catalogue.snapshots
        if not known and not _NAME.fullmatch(container):
            await mounts.unmount(target)
            return
        discard = functools.partial(self._directories.discard_now, self._directories.snapshots / container)
        grave = await mounts.unmount_and(target, discard)
        self._usage.pop(container, None)
        if grave is not None:  # first of all: on a full disk this is what makes room
            self._layers.bury([grave])
        if known:
            await self._forget(container)

    async def _forget(self, container: str) -> None:
        """Drop the row. A disk that won't take that is no reason to refuse the removal: it is tried again, and at the next start."""
        try:
            await self._catalogue.drop_snapshot(container)
        except (HostError, CorruptData) as exc:
            _logger.error("%s: the writable layer is gone, and stays in the index until the disk takes that: %s", container[:13], exc)
            self._owed.add(container)
        else:
            self._owed.discard(container)

    def usage(self, container: str) -> FsUsage | None:
        """What the container's writable layer took when it was last measured."""
        return self._usage.get(container)

    def total(self) -> FsUsage:
        """What all writable layers took when they were last measured."""
        found = list(self._usage.values())
        at_ns = min((usage.at_ns for usage in found), default=time.time_ns())
        return FsUsage(self._directories.snapshots, sum(u.used_bytes for u in found), sum(u.inodes_used for u in found), at_ns)

    def _taken(self, size: int, inodes: int) -> FsUsage:
        # All name the same directory, as container_filesystems of ImageFsInfo does: a kubelet looks its file system up by it.
        return FsUsage(self._directories.snapshots, size, inodes, time.time_ns())

    async def measure_for_ever(self, pause: float) -> None:
        """Walk the writable layers one after the other, ``pause`` seconds between two rounds."""
        limiter = anyio.CapacityLimiter(1)
        while True:
            for container in tuple(self._owed):
                await self._forget(container)
            for container in self._catalogue.snapshots.keys() - self._owed:
                upper = self._directories.snapshots / container / _UPPER
                try:
                    size, inodes = await anyio.to_thread.run_sync(disk.tree_usage, upper, limiter=limiter)
                except OSError as exc:
                    _logger.warning("can't measure %s: %s", upper, exc)
                    continue
                if container in self._catalogue.snapshots:
                    self._usage[container] = self._taken(size, inodes)
            await anyio.sleep(pause)


def _prepare(home: Path, lowers: list[Path], target: Path) -> bool:
    """Make the directories of a writable layer, its root like the image's; whether ``target`` is still to be mounted."""
    if os.path.ismount(target):
        return False
    home.mkdir(mode=0o700, exist_ok=True)
    (home / _WORK).mkdir(mode=0o700, exist_ok=True)
    if lowers[0] == home / _EMPTY:
        lowers[0].mkdir(mode=0o755, exist_ok=True)
    upper = home / _UPPER
    if not upper.exists():
        fresh = home / f"{_UPPER}.new"
        fresh.mkdir(mode=0o700, exist_ok=True)
        looks = lowers[0].stat()
        os.chown(fresh, looks.st_uid, looks.st_gid)
        fresh.chmod(stat.S_IMODE(looks.st_mode))
        fresh.rename(upper)
    return True
