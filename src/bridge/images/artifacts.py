"""OCI artifacts in the store: each layer is one file, named by its title. Pure.

A file becomes a layer of its own (docs/adr/0003-image-store.md), so that mounts, counters, checks and removal are those of images. Its
blob is put between the header and the end of a tar, which the unpacking child knows how to take. What stands for its diff id is made
of name and digest, for the digest of that tar is not known before all of it has come.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.errors import CorruptData
from bridge.images.manifest import TITLE, Descriptor, Manifest

_FILE_PATH = "org.cnai.model.filepath"
_MODE = 0o644
_BLOCK = 512
_LONGEST_NAME = 255
_LONGEST_PATH = 4000


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """The file that one layer is: its path below the volume's root, what its blob weighs and digests to."""

    path: str
    size: int
    digest: str

    @property
    def ident(self) -> str:
        """What stands for a diff id: other for every other path or content, and for every tar."""
        return "sha256:" + hashlib.sha256(f"artifact file {self.digest} {self.path}".encode()).hexdigest()

    def head(self) -> bytes:
        """What comes before the content in a tar. Root's, readable by all, of the year 1970, as the blob itself says nothing of that."""
        info = tarfile.TarInfo(self.path)
        info.size, info.mode = self.size, _MODE
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")

    def tail(self) -> bytes:
        """What comes after it."""
        return bytes(-self.size % _BLOCK + 2 * _BLOCK)


def files(manifest: Manifest) -> tuple[ArtifactFile, ...]:
    """The files of an artifact, one a layer. Raises CorruptData for names that no volume can have, naming the field."""
    found: dict[str, None] = {}
    for number, layer in enumerate(manifest.layers):
        where = f"manifest.layers[{number}].annotations"
        path = _path(layer, where)
        if path in found:
            raise CorruptData(f"{where}: two files are called {path!r}")
        found[path] = None
    for path in found:
        above = path
        while above := posixpath.dirname(above):
            if above in found:
                raise CorruptData(f"{above!r} is a file, and {path!r} lies below it")
    return tuple(ArtifactFile(path, layer.size, layer.digest) for path, layer in zip(found, manifest.layers, strict=True))


def _path(layer: Descriptor, where: str) -> str:
    """Where the file is to lie. One without a title is called by its digest, as podman calls it."""
    title = _title(layer.annotations)
    if not title:
        return layer.digest.replace(":", "-")
    parts = [part for part in title.split("/") if part not in ("", ".")]
    if title.startswith("/") or ".." in parts or not parts:
        raise CorruptData(f"{where}: the title {title[:200]!r} must be a relative path without '..'")
    if any(not part.isprintable() or len(part.encode()) > _LONGEST_NAME or part.startswith(".wh.") for part in parts):
        raise CorruptData(f"{where}: the title {title[:200]!r} is no name that a file can have here")
    path = "/".join(parts)
    if len(path.encode()) > _LONGEST_PATH:
        raise CorruptData(f"{where}: the title {title[:200]!r} is too long")
    return path


def _title(annotations: Mapping[str, str]) -> str:
    return annotations.get(TITLE) or annotations.get(_FILE_PATH) or ""


def idents(found: Sequence[ArtifactFile]) -> list[str]:
    """What the files have instead of diff ids."""
    return [file.ident for file in found]
