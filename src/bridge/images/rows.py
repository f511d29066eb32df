"""What the index holds, as frozen values: layers, documents, images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.ports.images import ImageConfig


@dataclass(frozen=True, slots=True)
class Layer:
    """A committed layer, in the directory ``layers/<id>``. ``listing`` is the digest of its ``files.gz``, "" for one made without."""

    id: int
    chain_id: str
    parent: int | None
    diff_id: str
    disk_bytes: int
    inodes: int
    tar_bytes: int
    exact: bool
    listing: str = ""


def layer_of(row: Sequence[Any]) -> Layer:
    """From the columns in this order."""
    number, chain_id, parent, diff_id, disk_bytes, inodes, tar_bytes, exact, listing = row
    return Layer(number, chain_id, parent, diff_id, disk_bytes, inodes, tar_bytes, bool(exact), listing)


@dataclass(frozen=True, slots=True)
class Blob:
    """A small document kept in the index: manifest, index or config."""

    digest: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One image. ``names`` are the references it was asked for by, ``digests`` the (repository, manifest digest) pairs it answers to."""

    id: str
    manifest: str
    config: ImageConfig
    layers: Sequence[Layer]
    names: frozenset[str] = frozenset()
    digests: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a finished pull or import adds. ``config`` is among ``blobs`` and its digest is the image's id."""

    id: str
    manifest: str
    blobs: Sequence[Blob]
    names: Sequence[str]
    digests: Sequence[tuple[str, str]]
