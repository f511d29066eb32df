"""The image RPCs: convert, call the store, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from bridge._proto.runtime import v1
from bridge.api import chunks, convert, encoding, info
from bridge.api.pieces import Pieces
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images


class ImageRpcs(v1.ImageServiceBase):
    """ListImages, StreamImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo."""

    def __init__(self, images: Images, handlers: Handlers) -> None:
        super().__init__()
        self._images = images
        self._handlers = handlers
        self._pieces = Pieces(convert.image, lambda image: image)  # an image is a value: it has changed when it is another

    async def list_images(self, message: v1.ListImagesRequest) -> v1.ListImagesResponse:
        """From memory, encoded pieces joined; the filter names one image."""
        return encoding.ready(v1.ListImagesResponse, self._listed(message.filter))

    def stream_images(self, message: v1.StreamImagesRequest) -> AsyncIterator[v1.StreamImagesResponse]:
        """The list in several messages: what there was when the call came."""
        return chunks.stream(v1.StreamImagesResponse, self._listed(message.filter))

    def _listed(self, condition: v1.ImageFilter | None) -> Iterator[bytes]:
        wanted = condition.image.image if condition and condition.image else ""
        everything = self._images.list()
        found = everything if not wanted else [image for image in [self._images.find(wanted)] if image]
        return self._pieces.of(found, len(everything))

    async def image_status(self, message: v1.ImageStatusRequest) -> v1.ImageStatusResponse:
        """An absent image is an empty response, not an error."""
        image = self._images.find(convert.image_name(message.image))
        if image is None:
            return v1.ImageStatusResponse()
        details = info.of_image(image, await self._images.config_document(image.id)) if message.verbose else {}
        return v1.ImageStatusResponse(image=convert.image(image), info=details)

    async def pull_image(self, message: v1.PullImageRequest) -> v1.PullImageResponse:
        """Join or start the pull; image_ref is the image's id, the same in every RPC. An unknown handler is refused."""
        handler = message.image.runtime_handler if message.image else ""
        if handler not in ("", *(state.name for state in self._handlers.states())):
            self._handlers.backend(handler)  # raises NotFound, which lists those there are
        name, auth = convert.image_name(message.image), convert.registry_auth(message.auth)
        image = await self._images.pull(name, auth, convert.namespace_of(message.sandbox_config))
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
