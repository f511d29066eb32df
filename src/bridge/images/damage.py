"""Layers whose directory is gone when it is needed: they are marked, so that the next pull of the image fetches them again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bridge import log
from bridge.errors import CorruptData, HostError
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories, blocking
from bridge.images.rows import Layer

GONE = "its directory is gone"
_logger = log.get("images")


@asynccontextmanager
async def noticed(directories: Directories, catalogue: Catalogue, layers: Sequence[Layer]) -> AsyncIterator[None]:
    """Around what mounts ``layers``: when it fails because one is not there, that one is marked. Then raises CorruptData."""
    try:
        yield
    except HostError as exc:
        gone = [layer for layer in layers if not await blocking(Path.is_dir, directories.files(layer.id))]
        if not gone:
            raise
        for layer in gone:
            await mark(catalogue, layer, GONE)
        names = ", ".join(layer.chain_id for layer in gone)
        raise CorruptData(f"the image is damaged (layer {names}: {GONE}); pull it again: only what is damaged is fetched") from exc


async def mark(catalogue: Catalogue, layer: Layer, fault: str) -> None:
    """Note that ``layer`` is damaged: no new container stands on it, and images with it are as good as absent until it is whole again."""
    _logger.error("layer %s (layers/%d) is damaged: %s", layer.chain_id, layer.id, fault)
    await catalogue.verified(layer.id, fault)
    await catalogue.sync()  # from here on its directory may be replaced, and no power cut may make a half of that look whole
