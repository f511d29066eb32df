"""What an operator asks of the store beyond the port: what uses an image, what it is made of, export, removal of what is unused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bridge import log
from bridge.errors import CorruptData, InUse, InvalidRequest, NotFound
from bridge.images import reference
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.exporting import Exporter, ExportProgress, ExportRequest, Wanted
from bridge.images.layers import LayerStore
from bridge.images.manifest import Manifest, parse
from bridge.images.rows import Layer, Record
from bridge.ports.images import FsUsage, Image

_logger = log.get("images")


class Store(Protocol):
    """What this module needs of the image store."""

    def meant(self, text: str) -> tuple[Record, str | None] | None: ...
    def image(self, record: Record) -> Image: ...
    def meanings(self, text: str) -> Sequence[str]: ...
    async def remove(self, text: str) -> None: ...
    async def gc(self) -> int: ...
    def image_usage(self) -> FsUsage: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """An image, and the containers that stand on it or have it as a volume. ``damaged``: the port does not show it."""

    image: Image
    used_by: Sequence[str]
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class LayerDetails:
    """A layer with what the manifest says of its blob; ``images`` is how many stand on it."""

    layer: Layer
    digest: str
    media_type: str
    blob_size: int
    images: int
    directory: Path


@dataclass(frozen=True, slots=True)
class Details:
    """All that the store knows of an image. ``manifest`` and ``config`` are the documents as they came."""

    listed: Listed
    manifest_digest: str
    manifest: bytes
    config: bytes
    layers: Sequence[LayerDetails]


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that was written: bytes, and the images with the names they got."""

    size: int
    images: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed; ``unfinished`` are downloaded layers of pulls that failed, and ``freed_bytes`` does not count them."""

    images: Sequence[Listed]
    layers: int
    freed_bytes: int
    unfinished: int = 0


class Administration:
    """Made by the store, for the command line's service."""

    def __init__(self, store: Store, catalogue: Catalogue, directories: Directories, layers: LayerStore) -> None:
        self._store = store
        self._catalogue = catalogue
        self._directories = directories
        self._layers = layers
        self._exporter = Exporter(catalogue, directories, layers)

    def list(self) -> Sequence[Listed]:
        """All images by id, damaged ones too."""
        return [self.listed(record) for _, record in sorted(self._catalogue.images.items())]

    def listed(self, record: Record) -> Listed:
        """With its users."""
        return Listed(self._store.image(record), self._catalogue.users(record.id), not self._catalogue.is_whole(record))

    def names(self, text: str) -> Sequence[str]:
        """The references by which a pull of ``text`` is shown among the running ones. Raises InvalidRequest."""
        return [str(reference.parse(meaning).canonical()) for meaning in self._store.meanings(text)]

    def find(self, text: str) -> Listed:
        """By name, id, or the beginning of one. Raises NotFound, InvalidRequest."""
        return self.listed(self._meant(text)[0])

    async def inspect(self, text: str) -> Details:
        """Raises NotFound, InvalidRequest, and CorruptData when the manifest is damaged."""
        record, _ = self._meant(text)
        digests = (record.manifest, record.config_digest)
        documents = await self._catalogue.blobs(digests)
        manifest, config = (documents[digest].data if digest in documents else b"" for digest in digests)
        parsed = parse(manifest)
        if not isinstance(parsed, Manifest):
            raise CorruptData(f"the manifest of {record.id} is an index")
        layers = [
            LayerDetails(layer, blob.digest, blob.media_type, blob.size, self._images_on(layer), self._directories.layer(layer.id))
            for layer, blob in zip(record.layers, parsed.layers, strict=True)
        ]
        return Details(self.listed(record), record.manifest, manifest, config, layers)

    def _images_on(self, layer: Layer) -> int:
        return sum(any(other.id == layer.id for other in record.layers) for record in self._catalogue.images.values())

    def _meant(self, text: str) -> tuple[Record, str | None]:
        found = self._store.meant(text)
        if found is None:
            raise NotFound(f"image {text} is not in the store")
        return found

    async def export(self, references: Sequence[str], request: ExportRequest, progress: ExportProgress) -> Exported:
        """Write images to ``request.path``: one that is named gets that name, one by id all its tags.

        Raises NotFound, InvalidRequest, AlreadyExists, Unsupported, CorruptData, HostError; then nothing was written.
        """
        if not references:
            raise InvalidRequest("which image?", field="references")
        records: dict[str, Record] = {}
        names: dict[str, dict[str, None]] = {}
        for text in references:
            record, name = self._meant(text)
            records[record.id] = record
            own = names.setdefault(record.id, {})
            own.update(dict.fromkeys([name] if name is not None else self._store.image(record).repo_tags))
        images = [Wanted(record, list(names[image])) for image, record in records.items()]
        size = await self._exporter.run(images, request, progress)
        return Exported(size, [(image.record.id, image.names) for image in images])

    @asynccontextmanager
    async def spool(self) -> AsyncIterator[Path]:
        """Where an archive may be made that is to be sent elsewhere; it is gone when the block ends."""
        path = self._directories.scratch()
        try:
            yield path
        finally:
            self._layers.bury([path])

    async def prune(self, *, every: bool, dry_run: bool = False) -> Pruned:
        """Remove the images that no container uses and that are not pinned: those that lost their names, or ``every`` one.

        Layers that nothing stands on go too, and downloads that were not finished. What a running pull needs stays.
        With ``dry_run`` it is only told which images these are.
        """
        before = self._store.image_usage().used_bytes
        records = [record for record in self._catalogue.images.values() if every or not record.names]
        found = [one for one in map(self.listed, records) if not one.used_by and not one.image.pinned]
        if dry_run:
            return Pruned(found, 0, 0)
        count = len(self._catalogue.layers)
        removed = []
        for one in found:
            now = self._catalogue.images.get(one.image.id)
            if now is None or (now.names and not every) or any(self._layers.is_wanted(layer.chain_id) for layer in now.layers):
                continue
            try:
                await self._store.remove(one.image.id)
            except InUse as exc:  # a container was made meanwhile
                _logger.info("%s", exc)
                continue
            removed.append(one)
        unfinished = self._layers.drop_unfinished()
        await self._store.gc()
        freed = max(0, before - self._store.image_usage().used_bytes)
        return Pruned(removed, max(0, count - len(self._catalogue.layers)), freed, unfinished)
