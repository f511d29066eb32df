"""CreateContainer from a checkpoint: an archive whose path stands in the place of the image.

The container stands on the image that the archive names, has the limits, mounts and identity that the request asks for, and its start
goes on where the checkpoint was made. Every mount that the checkpoint had must be in the request: an archive mounts nothing of the node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.core import checkpoint_documents
from bridge.core.checkpoint_documents import Described
from bridge.core.entities import Sandbox
from bridge.core.making import Making
from bridge.core.model import ContainerConfig
from bridge.errors import InvalidRequest, NotFound, Unmet, Unsupported
from bridge.ports.checkpoints import PROCESSES
from bridge.ports.images import Image, Images
from bridge.ports.runtime import Ability, RuntimeFeatures

_FIELD = "config.image.image"
_logger = log.get("core.restoring")


@dataclass(frozen=True, slots=True)
class Source:
    """An unpacked checkpoint: its directory, what it says, and the image that it stands on, with the checkpoint's command as its own."""

    directory: Path
    described: Described
    image: Image

    @property
    def processes(self) -> Path:
        """The images of its processes."""
        return self.directory / PROCESSES

    def check(self, oci: Mapping[str, Any]) -> None:
        """Raises InvalidRequest for a checkpoint that had mounts which the request does not name."""
        there = {mount["destination"] for mount in oci.get("mounts") or ()}
        missing = [path for path in self.described.mounts if path not in there]
        if missing:
            raise InvalidRequest(f"the checkpoint needs something mounted at {', '.join(missing)}", field="config.mounts")


def is_archive(config: ContainerConfig) -> bool:
    """Whether a checkpoint's path stands in the place of the image."""
    return config.image.image.startswith("/")


def check(sandbox: Sandbox, features: RuntimeFeatures) -> None:
    """Raises Unmet, Unsupported where this pod can't have a container of a checkpoint."""
    if (why := features.lacks(Ability.CHECKPOINT)) is not None:
        raise Unmet(f"{_FIELD}: handler {sandbox.handler!r} can't restore a checkpoint here: {why}")
    if sandbox.namespaces.get("user"):
        raise Unsupported(f"{_FIELD}: a checkpoint can't be restored into a pod with a user namespace")


@asynccontextmanager
async def opened(ident: str, config: ContainerConfig, sandbox: Sandbox, images: Images, bundle: Path) -> AsyncIterator[Source]:
    """Unpack the archive for the container that is made in the block; it goes again when that fails.

    Raises InvalidRequest, NotFound (the archive, or its image), CorruptData, LimitExceeded, HostError.
    """
    archive = Path(config.image.image)
    if not await to_thread.run_sync(archive.is_file):
        raise NotFound(f"{_FIELD}: there is no checkpoint {archive}")
    async with Rollback(f"restore {ident[:12]}") as undo:
        undo.push("remove the checkpoint's files", lambda: images.remove_rootfs(ident, bundle / "rootfs"))
        directory = await images.checkpoints.unpack(ident, archive)
        described = await to_thread.run_sync(checkpoint_documents.read, directory)
        if not await to_thread.run_sync((directory / PROCESSES).is_dir):
            raise InvalidRequest(f"{archive} has no {PROCESSES}/: it is no checkpoint of a container", field=_FIELD)
        image = await _image(described, images, sandbox)
        yield Source(directory, described, _with_command(image, described))
        undo.commit()


async def _image(described: Described, images: Images, sandbox: Sandbox) -> Image:
    for name in described.images:
        try:
            found = images.find(name)
        except InvalidRequest:  # another engine's words
            continue
        if found is not None and not found.artifact_type:
            return found
    pullable = [name for name in described.images if not name.startswith(("sha256:", "/"))]
    if not pullable:
        raise NotFound(
            f"{_FIELD}: the image that the checkpoint stands on is not in the store: {', '.join(described.images) or 'none named'}"
        )
    _logger.info("pulling %s, which the checkpoint stands on", pullable[0])
    return await images.pull(pullable[0], None, sandbox.config.metadata.namespace)


def _with_command(image: Image, described: Described) -> Image:
    """The spec must have a command, though what is restored runs already."""
    if not described.argv:
        return image
    return dataclasses.replace(image, config=dataclasses.replace(image.config, entrypoint=(), cmd=tuple(described.argv)))


async def apply(source: Source, making: Making, root: Path) -> None:
    """Give the root filesystem at ``root`` the files that the checkpoint's had."""
    await making.images.checkpoints.apply(source.directory, root)
