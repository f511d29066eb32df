"""Making room: images that nobody needs, layers that nothing stands on, downloads that were not finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge import log
from bridge.errors import InUse
from bridge.images.catalogue import Catalogue
from bridge.images.layers import LayerStore
from bridge.images.rows import Record

_logger = log.get("images")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went: ids of images, how many committed and how many unfinished layers, and what they took on disk (committed ones)."""

    images: Sequence[str]
    layers: int
    unfinished: int
    freed_bytes: int


async def prune(catalogue: Catalogue, layers: LayerStore, pinned: Callable[[Record], bool], *, unused: bool) -> Pruned:
    """Remove images without a name, with ``unused`` all that no container uses, never pinned ones; then all that is left over.

    What a running pull needs stays. Raises HostError.
    """
    before = sum(layer.disk_bytes for layer in catalogue.layers.values())
    gone = []
    for image in list(catalogue.images):
        record = catalogue.images.get(image)
        if record is None or (record.names and not unused) or pinned(record) or catalogue.users(image):
            continue
        if any(layers.is_wanted(layer.chain_id) for layer in record.layers):  # it may be about to get a name
            continue
        try:
            await catalogue.drop_image(record.id)
        except InUse:  # a container came meanwhile
            continue
        gone.append(record.id)
        _logger.info("pruned image %s (%s)", record.id, ", ".join(sorted(record.names)) or "without a name")
    unfinished = layers.drop_unfinished()
    dropped = await layers.drop_unused()
    after = sum(layer.disk_bytes for layer in catalogue.layers.values())
    return Pruned(gone, dropped, unfinished, max(0, before - after))
