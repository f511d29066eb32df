"""Image volumes: ``config.mounts[i].image``, an image's files or a part of them, read-only in the container (KEP-4639).

The kubelet pulls the image with PullImage first and then names it; here it is only looked up. Every failure begins with
``ImageVolumeMountFailed``, which the kubelet shows to the user as the reason why the container waits; what is wrong with the
request itself is an InvalidRequest. The image can't be removed as long as the container is there.
"""

from __future__ import annotations

from pathlib import Path

from bridge.core import id_mapped
from bridge.core.entities import Container
from bridge.core.making import Making
from bridge.core.model import ContainerConfig, MountPropagation, MountRequest
from bridge.core.spec_inputs import Volume
from bridge.errors import BridgeError, ImageVolumeMountFailed, InvalidRequest
from bridge.host import mounts
from bridge.ports.images import Images


def check(request: MountRequest, field: str) -> None:
    """Refuse what the request alone shows to be wrong. Raises InvalidRequest, ImageVolumeMountFailed (the sub-path)."""
    if request.image is None or not request.image.image:
        raise InvalidRequest("must not be empty", field=f"{field}.image.image")
    if not request.readonly:
        raise InvalidRequest("must be set: an image can only be mounted read-only", field=f"{field}.readonly")
    if request.propagation is not MountPropagation.PRIVATE:
        raise InvalidRequest("must be PROPAGATION_PRIVATE for an image", field=f"{field}.propagation")
    path = request.image_sub_path
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ImageVolumeMountFailed(f'{field}.image_sub_path: {path!r} must be relative to the image\'s root, without ".."')


def resolve(config: ContainerConfig, images: Images) -> tuple[str, ...]:
    """The image ids for config.mounts, "" where a mount names none; nothing at all when no mount does. Raises ImageVolumeMountFailed."""
    if not any(request.image for request in config.mounts):
        return ()
    return tuple(_resolve(request, f"config.mounts[{index}].image.image", images) for index, request in enumerate(config.mounts))


def _resolve(request: MountRequest, field: str, images: Images) -> str:
    if request.image is None:
        return ""
    try:
        found = images.find(request.image.image)
    except InvalidRequest as exc:
        raise ImageVolumeMountFailed(f"{field}: {exc}") from exc
    if found is None:
        raise ImageVolumeMountFailed(f"{field}: image {request.image.image!r} is not in the store; pull it first")
    return found.id


async def mount(making: Making, index: int, options: tuple[str, ...]) -> Volume:
    """Mount the image of config.mounts[index]; ``options`` are further ones of its bind mount. Raises ImageVolumeMountFailed."""
    request, target = making.config.mounts[index], _place(making.bundle, index)
    assert request.image is not None
    making.undo.push("unmount the image volume", lambda: mounts.unmount(target))
    image, name = making.container.mount_images[index], request.image.user_specified_image or request.image.image
    try:
        await making.images.admit(image, name, making.sandbox.config.metadata.namespace)
        async with id_mapped.namespace(request, making) as namespace:
            await making.images.mount_volume(
                making.container.id,
                image,
                target,
                request.image_sub_path,
                label=making.labels.mount,
                user_namespace=namespace,
            )
    except BridgeError as exc:
        part = f"sub-path {request.image_sub_path!r} of " if request.image_sub_path else ""
        raise ImageVolumeMountFailed(f"config.mounts[{index}]: can't mount {part}image {name!r}: {exc}") from exc
    return Volume(str(target), ("bind", "rprivate", "ro", *options))


async def unmount(container: Container, bundle: Path) -> None:
    """Unmount the image volumes of a container; idempotent. Raises HostError."""
    for index, image in enumerate(container.mount_images):
        if image:
            await mounts.unmount(_place(bundle, index))


def _place(bundle: Path, index: int) -> Path:
    return bundle / "image-volumes" / str(index)
