"""The configuration's image store and registries."""

from __future__ import annotations

from pathlib import Path

from bridge.config_types import GIB, MIB, Bytes, Count, Seconds, StatePath, Table


class Registry(Table):
    """How one registry host is reached; the key is its host[:port] as image names write it."""

    mirrors: list[str] = []
    """Base URLs or host[:port] tried first, in order. Why: none, ask the registry itself."""
    insecure: bool = False
    """Allow plain HTTP and any certificate. Why: images are code; only for registries on your own machine."""


class Images(Table):
    """The image store and pulls."""

    root: StatePath = Path("images")
    """Where blobs, layers and the containers' file systems are. Why: overlay wants them on one file system."""
    registries: dict[str, Registry] = {}
    """Settings by registry host. Why: public registries need none."""
    pinned: list[str] = []
    """Glob patterns of image names that are never garbage-collected. Why: the server itself needs no image."""
    parallel_downloads: Count = 4
    """Layers that are fetched and unpacked at once, over all pulls. Why: fills a link, and unpacking is bound by the disk."""
    stall_timeout: Seconds = 30.0
    """A download that brings no byte for so long is broken off and resumed. Why: a dead connection gives no error."""
    max_manifest: Bytes = 4 * MIB
    """Largest manifest, index or config accepted. Why: the limit that registries use."""
    max_layer: Bytes = 64 * GIB
    """Largest unpacked layer accepted. Why: above the largest model images, below what fills a disk by accident."""
    max_layer_files: Count = 4_000_000
    """Most entries in one layer. Why: a bomb of empty files eats inodes, not bytes."""
