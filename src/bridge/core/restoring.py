"""CreateContainer from a checkpoint: an archive whose path stands in the place of the image, or an image of one.

The container stands on the image that the archive names, has the limits, mounts and identity that the request asks for, and its start
goes on where the checkpoint was made. Every mount that the checkpoint had must be in the request: an archive mounts nothing of the node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.core import checkpoint_documents, pod_namespaces
from bridge.core.checkpoint_documents import DIRECTORIES, Described
from bridge.core.entities import Sandbox
from bridge.core.making import Making
from bridge.core.model import ContainerConfig
from bridge.errors import InvalidRequest, NotFound, Unmet, Unsupported
from bridge.host import files
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

    async def complete(self, oci: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
        """The spec as it can be restored: CRIU finds each mount again by its place, and refuses to do without one.

        What the checkpoint's engine had mounted of its own, and this server does not, gets an empty stand-in; what it had hidden stays
        hidden. Raises InvalidRequest for a checkpoint that had mounts which the request does not name, HostError.
        """
        there = {mount["destination"] for mount in oci.get("mounts") or ()}
        missing = [path for path in self.described.mounts if path not in there]
        if missing:
            raise InvalidRequest(f"the checkpoint needs something mounted at {', '.join(missing)}", field="config.mounts")
        stand_ins = await _stand_ins(bundle / "stand-ins", [path for path in self.described.own if path not in there])
        linux = dict(oci.get("linux") or {})
        hidden = linux.get("maskedPaths") or ()
        if hidden:  # none are in a privileged container, whose checkpoint has none either
            linux["maskedPaths"] = [*hidden, *(path for path in self.described.masked if path not in hidden)]
        return {**oci, "mounts": [*(oci.get("mounts") or ()), *stand_ins], "linux": linux}


async def origin(config: ContainerConfig, images: Images) -> Path | Image | None:
    """The checkpoint that stands in the place of the image: an archive's path, or an image of one; None for a container like any other.

    Only an image without a command is looked at: one that holds a checkpoint has none, and others are not to pay for the look.
    """
    name = config.image.image
    if name.startswith("/"):
        return Path(name)
    found = images.find(name) if name else None
    if found is None or found.artifact_type or found.config.cmd or found.config.entrypoint or not await images.checkpoints.named(found.id):
        return None
    return found


def check(sandbox: Sandbox, features: RuntimeFeatures, source: Path | Image, *, from_images: bool, whole: bool) -> None:
    """Raises Unmet, Unsupported where this pod can't have a container of a checkpoint.

    ``from_images``: they may be images; ``whole``: its handler restores pods as one.
    """
    if not from_images and not isinstance(source, Path):
        raise Unmet(f"{_FIELD}: it is a checkpoint, and security.restore_checkpoint_images is off")
    if (why := features.lacks(Ability.CHECKPOINT)) is not None:
        raise Unmet(f"{_FIELD}: handler {sandbox.handler!r} can't restore a checkpoint here: {why}")
    if whole and not sandbox.restoring:
        raise Unsupported(f"{_FIELD}: handler {sandbox.handler!r} restores whole pods alone: ask for RestorePod")
    if pod_namespaces.pin(sandbox) is not None:
        raise Unsupported(f"{_FIELD}: a checkpoint can't be restored into a pod with a user namespace")


async def _stand_ins(directory: Path, places: Sequence[str]) -> list[dict[str, Any]]:
    if not places:
        return []
    await files.make_dir(directory, 0o711)
    made = []
    for number, place in enumerate(places):
        if place in DIRECTORIES:
            await files.make_dir(directory / str(number), 0o755)
        made.append(
            {"destination": place, "type": "bind", "source": str(directory / str(number)), "options": ["bind", "ro", "nosuid", "nodev"]}
        )
    await files.write_files(directory, {str(number): "" for number, place in enumerate(places) if place not in DIRECTORIES})
    return made


@asynccontextmanager
async def opened(
    ident: str, origin: Path | Image, config: ContainerConfig, sandbox: Sandbox, images: Images, bundle: Path
) -> AsyncIterator[Source]:
    """Unpack the checkpoint for the container that is made in the block; it goes again when that fails.

    Raises InvalidRequest, NotFound (the archive, or its image), CorruptData, LimitExceeded, HostError.
    """
    if isinstance(origin, Path) and not await to_thread.run_sync(origin.is_file):
        raise NotFound(f"{_FIELD}: there is no checkpoint {origin}")
    async with Rollback(f"restore {ident[:12]}") as undo:
        undo.push("remove the checkpoint's files", lambda: images.remove_rootfs(ident, bundle / "rootfs"))
        if isinstance(origin, Path):
            directory = await images.checkpoints.unpack(ident, origin)
        else:
            await images.admit(origin.id, config.image.user_specified_image or config.image.image, sandbox.config.metadata.namespace)
            directory = await images.checkpoints.copy(ident, origin.id)
        described = await to_thread.run_sync(checkpoint_documents.read, directory)
        if not await to_thread.run_sync((directory / PROCESSES).is_dir):
            raise InvalidRequest(f"{config.image.image} has no {PROCESSES}/: it is no checkpoint of a container", field=_FIELD)
        image = await _image(described, images, sandbox)
        yield Source(directory, described, _with_command(image, described))
        undo.commit()


async def _image(described: Described, images: Images, sandbox: Sandbox) -> Image:
    """Where the checkpoint tells its image's id, none but that will do: a name may mean another image by now."""
    ids = [name for name in described.images if name.startswith("sha256:")]
    for name in described.images:
        try:
            found = images.find(name)
        except InvalidRequest:  # another engine's words
            continue
        if found is not None and not found.artifact_type and found.id in (ids or (found.id,)):
            return found
    pullable = [name for name in described.images if not name.startswith(("sha256:", "/"))]
    if not pullable:
        raise NotFound(
            f"{_FIELD}: the image that the checkpoint stands on is not in the store: {', '.join(described.images) or 'none named'}"
        )
    _logger.info("pulling %s, which the checkpoint stands on", pullable[0])
    pulled = await images.pull(pullable[0], None, sandbox.config.metadata.namespace)
    if ids and pulled.id not in ids:
        raise NotFound(f"{_FIELD}: {pullable[0]} is another image now than {ids[0]}, which the checkpoint stands on")
    return pulled


def _with_command(image: Image, described: Described) -> Image:
    """The spec must have a command, though what is restored runs already."""
    if not described.argv:
        return image
    return dataclasses.replace(image, config=dataclasses.replace(image.config, entrypoint=(), cmd=tuple(described.argv)))


async def apply(source: Source, making: Making, root: Path) -> None:
    """Give the root filesystem at ``root`` the files that the checkpoint's had."""
    await making.images.checkpoints.apply(source.directory, root)
