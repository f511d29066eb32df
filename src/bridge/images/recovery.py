"""What a start makes of what the last end left: the index is right, and what it doesn't know is rubbish."""

from __future__ import annotations

import os
from pathlib import Path

from bridge.images import disk, index_file
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.layers import LayerStore


async def recover(root: Path, catalogue: Catalogue, directories: Directories, layers: LayerStore) -> None:
    """Read the index, number new layers above all others, and sweep what nothing refers to. Raises HostError.

    Damaged files that were replaced stay while a container stands on them; so does everything, after the index was set aside.
    """
    await catalogue.load()
    there = await disk.blocking(os.listdir, directories.layers)
    layers.start_numbers(max([await catalogue.next_id(), *(int(name) + 1 for name in there if name.isdigit())]))
    live_layers = {str(layer.id) for layer in catalogue.layers.values()}
    live_layers.update(name for name, layer in (await disk.blocking(directories.set_aside)).items() if catalogue.in_use(layer))
    live_snapshots = set(catalogue.snapshots)
    if await index_file.was_set_aside(root):
        live_layers.update(there)
        live_snapshots.update(await disk.blocking(os.listdir, directories.snapshots))
    layers.bury(await directories.strays(live_layers, live_snapshots))
