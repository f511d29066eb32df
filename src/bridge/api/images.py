"""The image RPCs: convert, call the store, convert."""

from __future__ import annotations

from bridge._proto.runtime import v1
from bridge.api import convert, info
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images


class ImageRpcs(v1.ImageServiceBase):
    """ListImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo."""

    def __init__(self, images: Images, handlers: Handlers) -> None:
        super().__init__()
        self._images = images
        self._handlers = handlers

    async def list_images(self, message: v1.ListImagesRequest) -> v1.ListImagesResponse:
        """From memory; the filter names one image."""
        wanted = message.filter.image.image if message.filter and message.filter.image else ""
        found = self._images.list() if not wanted else [image for image in [self._images.find(wanted)] if image]
        return v1.ListImagesResponse(images=[convert.image(image) for image in found])

    async def image_status(self, message: v1.ImageStatusRequest) -> v1.ImageStatusResponse:
        """An absent image is an empty response, not an error."""
        image = self._images.find(convert.image_name(message.image))
        if image is None:
            return v1.ImageStatusResponse()
        return v1.ImageStatusResponse(image=convert.image(image), info=info.of_image(image) if message.verbose else {})

    async def pull_image(self, message: v1.PullImageRequest) -> v1.PullImageResponse:
        """Join or start the pull; image_ref is the image's id, the same in every RPC. An unknown handler is refused."""
        handler = message.image.runtime_handler if message.image else ""
        if handler not in ("", *(state.name for state in self._handlers.states())):
            self._handlers.backend(handler)  # raises NotFound, which lists those there are
        image = await self._images.pull(convert.image_name(message.image), convert.registry_auth(message.auth))
        return v1.PullImageResponse(image_ref=image.id)

    async def remove_image(self, message: v1.RemoveImageRequest) -> v1.RemoveImageResponse:
        """Absent is success."""
        await self._images.remove(convert.image_name(message.image))
        return v1.RemoveImageResponse()

    async def image_fs_info(self, message: v1.ImageFsInfoRequest) -> v1.ImageFsInfoResponse:
        """From counters."""
        del message
        return v1.ImageFsInfoResponse(
            image_filesystems=[convert.filesystem_usage(self._images.image_usage())],
            container_filesystems=[convert.filesystem_usage(self._images.container_usage())],
        )
