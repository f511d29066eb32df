"""The Admin service's RPCs about images: what the command's ``image`` verbs ask for.

Streaming ones return their generator instead of being one, so that closing it closes the work itself.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from bridge._proto.bridge.admin import v1
from bridge.api.reports import reported
from bridge.errors import InvalidRequest
from bridge.images.administration import Exported, LayerDetails, Listed
from bridge.images.check import CheckProgress, Damaged, Repair, Report
from bridge.images.disk import blocking
from bridge.images.exporting import Compression, ExportProgress, ExportRequest, Format
from bridge.images.progress import LayerProgress
from bridge.images.store import ImageStore
from bridge.ports.images import Image, RegistryAuth

TO_CALLER = "-"
"""The path of an export that is sent to who asked for it."""
_PIECE = 1 << 20


class ImageAdminRpcs(v1.AdminBase):
    """ListImages, InspectImage, PullImage, ImportImage, ImportImages, ExportImages, CheckImages, VerifyImages, PruneImages."""

    def __init__(self, images: ImageStore) -> None:
        super().__init__()
        self._images = images

    async def list_images(self, message: v1.ListImagesRequest) -> v1.ListImagesResponse:
        """From memory."""
        del message
        return v1.ListImagesResponse(images=[_stored(one) for one in self._images.administration.list()])

    async def inspect_image(self, message: v1.InspectImageRequest) -> v1.InspectImageResponse:
        """NotFound when it is not there."""
        found = await self._images.administration.inspect(message.reference)
        return v1.InspectImageResponse(
            image=_stored(found.listed),
            manifest_digest=found.manifest_digest,
            manifest=found.manifest,
            config=found.config,
            layers=[_layer(one) for one in found.layers],
        )

    def pull_image(self, message: v1.PullImageRequest) -> AsyncGenerator[v1.PullImageResponse]:
        """Join or start the pull. Whoever leaves early leaves it to itself, as with CRI's PullImage."""

        def end(image: Image) -> v1.PullImageResponse:
            return v1.PullImageResponse(image=_stored(self._images.administration.find(image.id)))

        def look() -> v1.PullImageResponse:
            return v1.PullImageResponse(progress=self._progress(self._images.administration.names(message.reference)))

        return reported(lambda: self._images.pull(message.reference, _auth(message)), look, end)

    async def import_image(self, message: v1.ImportImageRequest) -> v1.ImportImageResponse:
        """Load an archive or layout of this host."""
        images = await self._images.import_archive(_path(message.path), message.reference or None)
        return v1.ImportImageResponse(images=_imported(images))

    def import_images(self, message: v1.ImportImageRequest) -> AsyncGenerator[v1.ImportImagesResponse]:
        """The same, telling how far it is. Whoever leaves cancels it; layers that are complete stay for a while."""
        path = _path(message.path)
        return reported(
            lambda: self._images.import_archive(path, message.reference or None),
            lambda: v1.ImportImagesResponse(progress=self._progress([str(path)])),
            lambda images: v1.ImportImagesResponse(images=_imported(images)),
        )

    def export_images(self, message: v1.ExportImagesRequest) -> AsyncGenerator[v1.ExportImagesResponse]:
        """Write an archive or layout to this host, or send it, telling how far it is. Whoever leaves cancels it."""
        return self._sent(message) if message.path == TO_CALLER else self._written(message, _path(message.path))

    async def _sent(self, message: v1.ExportImagesRequest) -> AsyncGenerator[v1.ExportImagesResponse]:
        if message.format == Format.OCI_DIR:
            raise InvalidRequest("a directory can't be sent: ask for an archive, or give a path", field="path")
        async with self._images.administration.spool() as path:
            last = v1.ExportImagesResponse()
            async with aclosing(self._written(message, path)) as replies:
                async for last in replies:
                    if last.file is None:
                        yield last
            fd = await blocking(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while data := await blocking(os.read, fd, _PIECE):
                    yield v1.ExportImagesResponse(data=data)
            finally:
                os.close(fd)
            yield last

    def _written(self, message: v1.ExportImagesRequest, path: Path) -> AsyncGenerator[v1.ExportImagesResponse]:
        request, progress = _export(message, path), ExportProgress()
        return reported(
            lambda: self._images.administration.export(message.references, request, progress),
            lambda: v1.ExportImagesResponse(progress=v1.Progress(subject=message.path, layers=_bars(progress.show()))),
            lambda done: v1.ExportImagesResponse(file=_exported(done)),
        )

    async def check_images(self, message: v1.CheckImagesRequest) -> v1.CheckImagesResponse:
        """Compare the store with its index, and mend what is damaged if asked to."""
        report = await self._images.check(message.full)
        repairs = await self._images.repair() if message.repair else ()
        return _checked(report, repairs)

    def verify_images(self, message: v1.CheckImagesRequest) -> AsyncGenerator[v1.VerifyImagesResponse]:
        """The same, telling how far it is. Whoever leaves cancels it."""
        progress = CheckProgress()

        async def work() -> v1.CheckImagesResponse:
            report = await self._images.check(message.full, progress)
            return _checked(report, await self._images.repair() if message.repair else ())

        return reported(
            work,
            lambda: v1.VerifyImagesResponse(progress=v1.Progress(layers=_bars(progress.show()))),
            lambda report: v1.VerifyImagesResponse(report=report),
        )

    async def prune_images(self, message: v1.PruneImagesRequest) -> v1.PruneImagesResponse:
        """Remove what nothing uses."""
        done = await self._images.administration.prune(every=message.all, dry_run=message.dry_run)
        return v1.PruneImagesResponse(images=[_stored(one) for one in done.images], layers=done.layers, freed_bytes=done.freed_bytes)

    def _progress(self, subjects: Sequence[str]) -> v1.Progress:
        """Of the running pull or import of one of ``subjects``."""
        found = next((pull for pull in self._images.progress() if pull.reference in subjects), None)
        return v1.Progress() if found is None else v1.Progress(subject=found.reference, layers=_bars(found.layers))


def _path(text: str) -> Path:
    if not text.startswith("/"):
        raise InvalidRequest(f"{text!r} must be absolute", field="path")
    return Path(text)


def _auth(message: v1.PullImageRequest) -> RegistryAuth | None:
    given = RegistryAuth(
        message.username, message.password, message.auth, message.server_address, message.identity_token, message.registry_token
    )
    return None if given == RegistryAuth(server_address=message.server_address) else given


def _export(message: v1.ExportImagesRequest, path: Path) -> ExportRequest:
    if message.format not in list(Format):
        raise InvalidRequest(f"{message.format!r} is none of {', '.join(Format)}", field="format")
    if message.compression not in list(Compression):
        raise InvalidRequest(f"{message.compression!r} is none of {', '.join(Compression)}", field="compression")
    return ExportRequest(path, Format(message.format), Compression(message.compression), message.replace)


def _stored(listed: Listed) -> v1.StoredImage:
    image = listed.image
    return v1.StoredImage(
        id=image.id,
        tags=list(image.repo_tags),
        digests=list(image.repo_digests),
        size=image.size,
        pinned=image.pinned,
        used_by=list(listed.used_by),
        damaged=listed.damaged,
        artifact_type=image.artifact_type,
    )


def _layer(one: LayerDetails) -> v1.StoredLayer:
    return v1.StoredLayer(
        diff_id=one.layer.diff_id,
        chain_id=one.layer.chain_id,
        digest=one.digest,
        media_type=one.media_type,
        blob_size=one.blob_size,
        tar_size=one.layer.tar_bytes,
        disk_size=one.layer.disk_bytes,
        inodes=one.layer.inodes,
        images=one.images,
        directory=str(one.directory),
        exact=one.layer.exact,
    )


def _bars(layers: Sequence[LayerProgress]) -> list[v1.LayerProgress]:
    return [v1.LayerProgress(digest=one.digest, size=one.size, done=one.received, state=str(one.state)) for one in layers]


def _imported(images: Sequence[Image]) -> list[v1.ImportedImage]:
    return [v1.ImportedImage(id=image.id, tags=list(image.repo_tags)) for image in images]


def _exported(done: Exported) -> v1.ExportedFile:
    return v1.ExportedFile(size=done.size, images=[v1.ImportedImage(id=image, tags=list(names)) for image, names in done.images])


def _checked(report: Report, repairs: Sequence[Repair]) -> v1.CheckImagesResponse:
    return v1.CheckImagesResponse(
        full=report.full,
        layers=report.layers,
        damaged=[_damaged(one) for one in report.damaged],
        index_faults=list(report.index),
        damaged_documents=list(report.blobs),
        recounted=report.recounted,
        seconds=report.seconds,
        repairs=[v1.RepairedImage(id=one.image, names=list(one.names), error=one.error) for one in repairs],
    )


def _damaged(one: Damaged) -> v1.DamagedLayer:
    return v1.DamagedLayer(
        chain_id=one.chain_id,
        directory=str(one.number),
        problems=list(one.problems),
        images=list(one.images),
        containers=list(one.containers),
    )
