"""All that the index holds, read from ``index.db`` in one transaction: layers, images, names, snapshots, holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.images.manifest import parse_config
from bridge.images.rows import Layer, Record, layer_of
from bridge.ports.images import ImageConfig

_LAYERS = "SELECT id, chain_id, parent, diff_id, disk_bytes, inodes, tar_bytes, exact, listing, fault, verified_ns FROM layers ORDER BY id"
_IMAGES = "SELECT i.id, i.manifest, i.top, b.data, i.artifact_type, i.config FROM images i JOIN blobs b ON b.digest = i.id"


@dataclass
class Contents:
    """As ``Catalogue`` has it in memory, whose attributes these are. ``faults`` and ``verified_ns`` are by the layer's id."""

    images: dict[str, Record] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    layers_by_id: dict[int, Layer] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    holds: dict[str, frozenset[str]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    verified_ns: dict[int, int] = field(default_factory=dict)


def read(connection: sqlite3.Connection) -> Contents:
    """What is there at one moment. Raises sqlite3.Error, CorruptData."""
    connection.execute("BEGIN")  # what is written meanwhile is seen in all tables or in none
    try:
        return _read(connection)
    finally:
        connection.execute("ROLLBACK")


def _read(connection: sqlite3.Connection) -> Contents:
    found = Contents()
    rows = connection.execute(_LAYERS).fetchall()
    for layer in [layer_of(row[:-2]) for row in rows]:
        found.layers[layer.chain_id] = found.layers_by_id[layer.id] = layer
    found.faults = {row[0]: row[-2] for row in rows if row[-2]}
    found.verified_ns = {row[0]: row[-1] for row in rows}
    found.names = dict(connection.execute("SELECT name, image FROM names").fetchall())
    digests = connection.execute("SELECT image, repository, digest FROM digests").fetchall()
    for image, manifest, top, data, artifact_type, config in connection.execute(_IMAGES):
        own = frozenset(name for name, owner in found.names.items() if owner == image)
        pairs = frozenset((repository, digest) for owner, repository, digest in digests if owner == image)
        run = ImageConfig() if artifact_type else parse_config(data).run
        found.images[image] = Record(image, manifest, run, chain(found.layers_by_id, top), own, pairs, artifact_type, config or "")
    found.snapshots = dict(connection.execute("SELECT container, image FROM snapshots").fetchall())
    for container, image in connection.execute("SELECT container, image FROM holds"):
        found.holds[container] = found.holds.get(container, frozenset()) | {image}
    return found


def chain(layers: Mapping[int, Layer], top: int | None) -> tuple[Layer, ...]:
    """The layers from the base up to ``top``."""
    found: list[Layer] = []
    while top is not None:
        found.append(layers[top])
        top = layers[top].parent
    return tuple(reversed(found))
