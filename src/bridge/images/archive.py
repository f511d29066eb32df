"""Image archives on disk: an OCI layout or a ``docker save`` archive, as a directory or a tar, compressed or not.

``open_archive`` gives its files by name without unpacking it: a file is a slice of the tar. A compressed tar is decompressed
into a scratch file first. Everything here blocks; ``Bundle.stream`` alone is for the event loop.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from bridge.errors import CorruptData, HostError, InvalidRequest, LimitExceeded
from bridge.images import decompress
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.images.settings import Limits

_CHUNK = 1 << 20
_MAX_MEMBERS = 100_000
_MAX_LINKS = 8


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of a file."""

    path: Path
    offset: int
    size: int


class Bundle:
    """The files of an archive by name."""

    def __init__(self, origin: Path, slices: Mapping[str, Slice], links: Mapping[str, str]) -> None:
        self.origin = origin
        self._slices = slices
        self._links = links

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def _find(self, name: str) -> Slice | None:
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                return self._slices.get(name)
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), self._links[name]))
        return None

    def slice(self, name: str) -> Slice:
        """Where ``name`` lies. Raises CorruptData when the archive lacks it."""
        found = self._find(name)
        if found is None:
            raise CorruptData(f"{self.origin} lacks {name!r}")
        return found

    def read(self, name: str, limit: int) -> bytes:
        """A small file. Blocks. Raises CorruptData, HostError."""
        found = self.slice(name)
        if found.size > limit:
            raise CorruptData(f"{self.origin}: {name!r} has {found.size} bytes; at most {limit} are accepted")
        try:
            with found.path.open("rb") as file:
                file.seek(found.offset)
                return file.read(found.size)
        except OSError as exc:
            raise HostError(f"can't read {found.path}: {exc.strerror}", errno=exc.errno) from exc

    async def stream(self, name: str) -> AsyncGenerator[bytes]:
        """The bytes of a file, in pieces. Raises as ``read`` does."""
        found = self.slice(name)
        left = found.size
        try:
            file = await anyio.to_thread.run_sync(found.path.open, "rb")
            try:
                await anyio.to_thread.run_sync(file.seek, found.offset)
                while left and (chunk := await anyio.to_thread.run_sync(file.read, min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk
            finally:
                file.close()
        except OSError as exc:
            raise HostError(f"can't read {found.path}: {exc.strerror}", errno=exc.errno) from exc
        if left:
            raise CorruptData(f"{self.origin}: {name!r} is cut short")


def open_archive(path: Path, scratch: Path, limits: Limits) -> Bundle:
    """The archive at ``path``; ``scratch`` is a new file for its decompressed form. Blocks.

    Raises InvalidRequest, CorruptData, LimitExceeded, HostError.
    """
    try:
        if path.is_dir():
            return _directory(path)
        with path.open("rb") as file:
            head = file.read(262)
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist", field="path") from None
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc
    if head[257:262] != b"ustar":
        _decompress(path, scratch, limits)
        path = scratch
    return _tar(path)


def _directory(path: Path) -> Bundle:
    """A layout directory was put there by the administrator: its links are followed by the system as usual."""
    slices = {}
    for top, _, files in os.walk(path):
        for name in files:
            file = Path(top, name)
            if file.is_file():
                slices[str(file.relative_to(path))] = Slice(file, 0, file.stat().st_size)
    return Bundle(path, slices, {})


def _decompress(path: Path, scratch: Path, limits: Limits) -> None:
    try:
        with path.open("rb") as file, scratch.open("xb") as out:
            source = Source(file.read)
            for chunk in decompress.limited(decompress.open_stream(source), source, limits.layer_bytes, limits.ratio):
                out.write(chunk)
    except BadStream as exc:
        raise CorruptData(f"{path}: {exc}") from exc
    except TooBig as exc:
        raise LimitExceeded(f"{path}: {exc}") from exc
    except OSError as exc:
        raise HostError(f"can't decompress {path}: {exc}", errno=exc.errno) from exc


def _tar(path: Path) -> Bundle:
    slices: dict[str, Slice] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise LimitExceeded(f"{path} has more than {_MAX_MEMBERS} entries: it is no image archive")
                name = posixpath.normpath(member.name)
                if member.isreg() and not member.issparse():
                    slices[name] = Slice(path, member.offset_data, member.size)
                elif member.issym():
                    links[name] = member.linkname
    except (tarfile.TarError, EOFError, ValueError) as exc:
        raise CorruptData(f"{path} is no image archive: {exc}") from exc
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc
    return Bundle(path, slices, links)
