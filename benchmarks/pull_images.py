"""The images of the pull benchmark, made of this host's own files below /usr and pushed to a private registry.

The files are real ones, for sizes and compressibility decide; every server pulls the same blobs.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.testing.images import Layout

_SOURCES = (Path("/usr/share"), Path("/usr/lib"))
_LARGEST = 8 << 20  # one file; above it a single binary would be the image
SMALL = 10
"""How many small images there are, for pulls at once."""


@dataclass(frozen=True)
class Sizes:
    """At least so many bytes and files in the big image."""

    bytes: int = 300 << 20
    files: int = 15_000


@dataclass(frozen=True)
class Pushed:
    """What lies in the registry. ``references`` of the big image by (layers, compression), of the small ones in a row."""

    big: dict[tuple[int, str], str]
    small: Sequence[str]
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


def _layers(paths: Sequence[Path], count: int) -> list[bytes]:
    """Tars of consecutive parts of ``paths``, each with its parent directories."""
    size = -(-len(paths) // count)
    return [_tar(paths[start : start + size]) for start in range(0, len(paths), size)]


def _tar(paths: Sequence[Path]) -> bytes:
    out = io.BytesIO()
    seen: set[Path] = set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            for parent in [p for p in reversed(path.parents) if p != Path("/") and p not in seen]:
                seen.add(parent)
                archive.add(parent, str(parent)[1:], recursive=False)
            archive.add(path, str(path)[1:], recursive=False)
    return out.getvalue()


def push(directory: Path, host: str, sizes: Sizes) -> Pushed:
    """Make the images below ``directory``, which may be removed afterwards, and push them to the registry at ``host``."""
    paths, total = _chosen(sizes)
    big: dict[tuple[int, str], str] = {}
    for layers in (1, 8):
        tars = _layers(paths, layers)
        for compression in ("gzip", "zstd"):
            big[layers, compression] = _one(directory, host, f"big-{layers}-{compression}", tars, compression)
    small = [_one(directory, host, f"small-{number}", [tar], "gzip") for number, tar in enumerate(_layers(paths, SMALL))]
    return Pushed(big, small, total, len(paths))


def _one(directory: Path, host: str, name: str, tars: Sequence[bytes], compression: str) -> str:
    target = directory / name
    with Layout(target) as layout:
        layout.image(name, tars, compression=compression, config={"Cmd": ["true"]})
    reference = f"{host}/bench/{name}:1"
    copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{target}:{name}", f"docker://{reference}"]
    subprocess.run(copy, check=True, timeout=300)
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return reference
