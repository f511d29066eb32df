"""The images of the pull benchmark, made of this host's own files below /usr and pushed to a private registry.

The files are real ones, for sizes and compressibility decide. Of each image there are many copies which differ by one small file a layer,
so that every digest is another one and none has to be removed before the next pull: a file system that has just lost a tree is slow.
Every server pulls the same blobs.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.testing.images import CONFIG_TYPE, LAYER_TYPE, compress
from bridge.testing.pushes import Pusher

_SOURCES = (Path("/usr/share"), Path("/usr/lib"))
_LARGEST = 8 << 20  # one file; above it a single binary would be the image
_SALT = "usr/salt"
SMALL = 10
"""How many small images there are, for pulls at once."""


@dataclass(frozen=True)
class Sizes:
    """At least so many bytes and files in the big image."""

    bytes: int = 300 << 20
    files: int = 15_000


@dataclass(frozen=True)
class Pushed:
    """What lies in the registry, by copy: references of the big image by (layers, compression), of the small ones in a row."""

    big: Sequence[dict[tuple[int, str], str]]
    small: Sequence[Sequence[str]]
    bytes: int
    files: int


def _files() -> Iterator[tuple[Path, int]]:
    for source in _SOURCES:
        for directory, names, files in os.walk(source):
            names.sort()
            for name in sorted(files):
                path = Path(directory, name)
                found = path.lstat()
                if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST):
                    yield path, found.st_size


def _chosen(sizes: Sizes) -> tuple[list[Path], int]:
    chosen, total = [], 0
    for path, size in _files():
        chosen.append(path)
        total += size
        if total >= sizes.bytes and len(chosen) >= sizes.files:
            return chosen, total
    raise RuntimeError(f"this host has only {len(chosen)} files with {total} bytes below {', '.join(map(str, _SOURCES))}")


class _Layer:
    """A layer in many copies: the tar of its files is compressed once, a copy's own file is a second member (gzip) or frame (zstd)."""

    def __init__(self, paths: Sequence[Path], compression: str, prefixes: Sequence[str] = ("",)) -> None:
        tar = b"".join(_tar(paths, prefix) for prefix in prefixes)
        self._compression = compression
        self._head = compress(tar, compression)
        self._hash = hashlib.sha256(tar)

    def copy(self, salt: str) -> tuple[bytes, str]:
        """The blob and the diff id of one copy."""
        info = tarfile.TarInfo(_SALT)
        info.size = len(salt)
        tail = info.tobuf(tarfile.PAX_FORMAT) + salt.encode().ljust(512, b"\0") + bytes(1024)
        whole = self._hash.copy()
        whole.update(tail)
        return self._head + compress(tail, self._compression), "sha256:" + whole.hexdigest()


def _parts(paths: Sequence[Path], count: int) -> list[Sequence[Path]]:
    size = -(-len(paths) // count)
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _tar(paths: Sequence[Path], prefix: str) -> bytes:
    """Without an end, below ``prefix``, with the parent directories."""
    out = io.BytesIO()
    seen: set[Path] = set()
    archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closing it would write the end
    for path in paths:
        for parent in [p for p in reversed(path.parents) if p != Path("/") and p not in seen]:
            seen.add(parent)
            archive.add(parent, f"{prefix}{parent}"[1:], recursive=False)
        archive.add(path, f"{prefix}{path}"[1:], recursive=False)
    return out.getvalue()


def push(host: str, sizes: Sizes, copies: int) -> Pushed:
    """Make ``copies`` of each image and push them to the registry at ``host``."""
    paths, total = _chosen(sizes)
    big: list[dict[tuple[int, str], str]] = [{} for _ in range(copies)]
    for count in (1, 8):
        for compression in ("gzip", "zstd"):
            layers = [_Layer(part, compression) for part in _parts(paths, count)]
            for number, found in enumerate(big):
                found[count, compression] = _one(host, f"big-{count}-{compression}", number, layers, compression)
    parts = [_Layer(part, "gzip") for part in _parts(paths, SMALL)]
    small = [[_one(host, f"small-{each}", number, [part], "gzip") for each, part in enumerate(parts)] for number in range(copies)]
    return Pushed(big, small, total, len(paths))


def push_one(host: str, sizes: Sizes) -> str:
    """A single image of one gzip layer; its reference."""
    return _one(host, "again", 0, [_Layer(_chosen(sizes)[0], "gzip")], "gzip")


def push_sizes(host: str, mebibytes: Sequence[int], copies: int) -> Sequence[dict[int, str]]:
    """Images of one gzip layer of about so many MiB each, the same files again and again: references by size, for each copy."""
    unit = min(mebibytes)
    paths, _ = _chosen(Sizes(unit << 20, 1))
    found: list[dict[int, str]] = [{} for _ in range(copies)]
    for size in mebibytes:
        layer = _Layer(paths, "gzip", [f"/{number}" for number in range(size // unit)])
        for number, references in enumerate(found):
            references[size] = _one(host, f"sized-{size}", number, [layer], "gzip")
    return found


def _one(host: str, name: str, number: int, layers: Sequence[_Layer], compression: str) -> str:
    pusher = Pusher(host, f"bench/{name}")
    salted = [layer.copy(f"{name} {number} {each}") for each, layer in enumerate(layers)]
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in salted]},
    }
    pusher.image(str(number), config, [pusher.blob(blob, f"{LAYER_TYPE}+{compression}") for blob, _ in salted], CONFIG_TYPE)
    return f"{pusher.name}:{number}"
