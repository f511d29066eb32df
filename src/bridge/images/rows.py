"""What the index holds, as frozen values: layers, documents, images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.images.manifest import parse_config
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
    """One image. ``names`` are the references it was asked for by, ``digests`` the (repository, manifest digest) pairs it answers to.

    ``artifact_type`` is "" for an image; an artifact's id is its manifest's digest, and ``own_config`` the digest of its config.
    """

    id: str
    manifest: str
    config: ImageConfig
    layers: Sequence[Layer]
    names: frozenset[str] = frozenset()
    digests: frozenset[tuple[str, str]] = frozenset()
    artifact_type: str = ""
    own_config: str = ""

    @property
    def config_digest(self) -> str:
        """Of the config, whose form only an image's is known."""
        return self.own_config or self.id

    @property
    def documents(self) -> frozenset[str]:
        """The digests of all that is kept of it in the index."""
        return frozenset((self.config_digest, self.manifest, *(digest for _, digest in self.digests)))

    def has_all_of(self, new: NewImage) -> bool:
        """Whether adding ``new`` to it would change nothing in the index."""
        return new.kept and self.names.issuperset(new.names) and self.digests.issuperset(new.digests)


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a finished pull or import adds. The config is among ``blobs``; its digest is an image's id. See Record for an artifact.

    ``kept``: all of ``blobs`` were found in the index, as they are.
    """

    id: str
    manifest: str
    blobs: Sequence[Blob]
    names: Sequence[str]
    digests: Sequence[tuple[str, str]]
    artifact_type: str = ""
    own_config: str = ""
    kept: bool = False

    @property
    def run(self) -> ImageConfig:
        """What a container start uses of the config; nothing of an artifact's. Raises CorruptData."""
        if self.artifact_type:
            return ImageConfig()
        return next(parse_config(blob.data).run for blob in self.blobs if blob.digest == self.id)
