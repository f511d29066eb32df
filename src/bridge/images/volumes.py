"""Images as volumes of containers: an overlay of the image's layers without a writable one, or a part of it (KEP-4639).

Always an overlay, also of a single layer: a bind mount of the layer could be made writable again from inside a privileged container,
and every container of the node would see what is written there. An overlay without an upper directory can't.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import anyio

from bridge.errors import InvalidRequest, NotFound
from bridge.host import mount_copies, mounts, rootfs
from bridge.images import damage, ownership
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories, blocking, remove_tree
from bridge.images.rows import Layer

_FEWEST = 2
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_UNDO_SECONDS = 10.0


class Volumes:
    """The volumes of one store. A volume's mount belongs to whoever asked for it; the hold on its image is kept in the index."""

    def __init__(self, directories: Directories, catalogue: Catalogue) -> None:
        self._directories = directories
        self._catalogue = catalogue

    async def mount(
        self, container: str, image: str, target: Path, sub_path: str, *, label: str = "", user_namespace: Path | None = None
    ) -> None:
        """Mount ``image``, or what is at ``sub_path`` in it, read-only at ``target``. See ``bridge.ports.images``."""
        await self._catalogue.add_hold(container, image)
        if not sub_path:
            await self._mount_whole(image, target, label, user_namespace)
            return
        # A copy of the part is attached and the whole goes again: an overlay lives as long as any mount of it.
        whole = target.with_name(f"{target.name}.whole")
        try:
            await self._mount_whole(image, whole, label, user_namespace)
            await _attach_part(whole, sub_path, target)
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _UNDO_SECONDS):
                await mounts.unmount_and(whole, lambda: _remove_directory(whole))

    async def _mount_whole(self, image: str, target: Path, label: str, user_namespace: Path | None) -> None:
        record = self._catalogue.images.get(image)
        if record is None:
            raise NotFound(f"image {image} is not in the store")
        async with damage.noticed(self._directories, self._catalogue, record.layers):
            await self._mount_layers(record.layers, target, label, user_namespace)

    async def _mount_layers(self, wanted: Sequence[Layer], target: Path, label: str, user_namespace: Path | None) -> None:
        layers = [self._directories.files(layer.id) for layer in reversed(wanted)]
        padding = self._directories.empty[: max(0, _FEWEST - len(layers))]
        prepare = functools.partial(_prepare, target, padding)
        if user_namespace is None:
            await mounts.mount_overlay([*layers, *padding], None, None, target, prepare=prepare, context=label)
            return
        home = target.with_name(f"{target.name}.home")
        await blocking(_make_directory, home.parent)
        try:
            source = self._directories.layers if layers else padding[0].parent
            async with ownership.pinned(user_namespace) as namespace, ownership.view(source, home, namespace) as seen:
                lowers = [*map(seen, layers), *padding] if layers else [*map(seen, padding)]
                await mounts.mount_overlay(lowers, None, None, target, prepare=prepare, context=label)
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _UNDO_SECONDS):
                await remove_tree(home)

    async def release(self, container: str) -> None:
        """Let go of the images of a container's volumes; none is success, and then nothing is written."""
        if container in self._catalogue.holds:
            await self._catalogue.drop_holds(container)


def _prepare(target: Path, padding: Sequence[Path]) -> bool:
    for path in padding:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    _make_directory(target)
    return not os.path.ismount(target)


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


async def _attach_part(whole: Path, sub_path: str, target: Path) -> None:
    found = await blocking(_open_part, whole, sub_path)
    try:
        await blocking(_make_target, target, os.fstat(found).st_mode)
        await mount_copies.attach(found, target, recursive=False, read_only=True)
    finally:
        os.close(found)


def _open_part(whole: Path, sub_path: str) -> int:
    """``sub_path`` as seen from the image's root, links included, opened with O_PATH. Raises NotFound, InvalidRequest, OSError."""
    try:
        found = rootfs.open_in(whole, sub_path, os.O_PATH)
    except OSError as exc:
        if exc.errno in _ABSENT:
            raise NotFound(f"{sub_path!r} does not exist in the image") from exc
        if exc.errno == errno.ELOOP:
            raise InvalidRequest(f"{sub_path!r} can't be followed in the image: {os.strerror(errno.ELOOP)}") from exc
        raise
    mode = os.fstat(found).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        os.close(found)
        raise InvalidRequest(f"{sub_path!r} in the image is neither a directory nor a regular file")
    return found


def _make_target(target: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.touch(mode=0o600)


def _remove_directory(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
