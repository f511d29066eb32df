"""Export of images to an archive or a layout that every other tool reads: documents from the index, blobs made from the layers.

Formats: ``oci`` is a tar with an OCI layout (image-spec image-layout.md) and Docker's manifest.json beside its index.json, as
containerd and Docker write it; ``oci-dir`` is the layout as a directory; ``docker`` is what ``docker save`` made before. A blob is
written by a confined child straight into the target, and its diff id is compared with the config's. Layers were not kept compressed,
so a manifest is made anew unless all its blobs came out the same (docs/adr/0003-image-store.md).
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import anyio

from bridge.errors import CorruptData, HostError, InvalidRequest, Unsupported
from bridge.host import process
from bridge.images import artifacts, disk, export_documents, twins
from bridge.images.artifacts import ArtifactFile
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.export_documents import Document, Written
from bridge.images.export_file import Archive, Folder, Target
from bridge.images.layerfiles import write
from bridge.images.layers import LayerStore
from bridge.images.manifest import Manifest, parse
from bridge.images.progress import LayerProgress, LayerState
from bridge.images.rows import Layer, Record
from bridge.images.unpack import FILES, TAR_LOG, import_path

_CODE = "import sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images.export_child import main; sys.exit(main(sys.argv[2:]))"
_PIECE = 1 << 20
_COUNTER = struct.Struct("=Q")


class Format(StrEnum):
    """What is written."""

    OCI = "oci"
    OCI_DIR = "oci-dir"
    DOCKER = "docker"


class Compression(StrEnum):
    """How layers are compressed. Docker's old format has them plain."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Where to, and how. ``replace``: a file that is there may be overwritten."""

    path: Path
    format: Format = Format.OCI
    compression: Compression = Compression.GZIP
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image and the names under which it is to be exported."""

    record: Record
    names: Sequence[str]


@dataclass(slots=True)
class ExportProgress:
    """How far an export is, by layer. Its sizes are those of the layers' tars."""

    layers: Sequence[Layer] = ()
    finished: set[str] = field(default_factory=set)
    current: str = ""
    counter: int = -1

    def show(self) -> Sequence[LayerProgress]:
        """A copy for people."""
        return [self._layer(layer) for layer in self.layers]

    def _layer(self, layer: Layer) -> LayerProgress:
        if layer.diff_id in self.finished:
            return LayerProgress(layer.diff_id, layer.tar_bytes, layer.tar_bytes, LayerState.DONE)
        if layer.diff_id != self.current:
            return LayerProgress(layer.diff_id, layer.tar_bytes, 0, LayerState.WAITING)
        done: int = _COUNTER.unpack(os.pread(self.counter, _COUNTER.size, 0))[0]
        return LayerProgress(layer.diff_id, layer.tar_bytes, done, LayerState.WRITING)

    @contextmanager
    def writing(self, layer: Layer, counter: int) -> Iterator[None]:
        """``layer`` is written while the block runs; the file ``counter`` has the number of its bytes so far."""
        self.current, self.counter = layer.diff_id, counter
        try:
            yield
        finally:
            self.current, self.counter = "", -1
        self.finished.add(layer.diff_id)


class Exporter:
    """Exports images of one store."""

    def __init__(self, catalogue: Catalogue, directories: Directories, layers: LayerStore) -> None:
        self._catalogue = catalogue
        self._directories = directories
        self._layers = layers

    async def run(self, images: Sequence[Wanted], request: ExportRequest, progress: ExportProgress) -> int:
        """Write ``images``; how many bytes the target has. On failure or cancellation nothing is left.

        Raises InvalidRequest, AlreadyExists, Unsupported (a layer that can't be made again), CorruptData (a damaged one), HostError.
        """
        if request.format is Format.DOCKER and request.compression is not Compression.NONE:
            raise InvalidRequest("the docker format has plain layers", field="compression")
        if request.format is Format.DOCKER and any(image.record.artifact_type for image in images):
            raise Unsupported("the docker format has no place for artifacts: export them as oci")
        distinct = {layer.diff_id: layer for image in images for layer in image.record.layers}
        files = {layer.diff_id for image in images if image.record.artifact_type for layer in image.record.layers}
        for layer in distinct.values():
            if not layer.exact and layer.diff_id not in files:
                raise Unsupported(
                    f"layer {layer.diff_id} names a file twice in its archive, so it can't be made again from its files: "
                    "copy the image from its registry instead"
                )
        with self._layers.wanted([layer.chain_id for image in images for layer in image.record.layers]):
            progress.layers = list(distinct.values())
            target = await _opened(request)
            try:
                await self._fill(target, images, request, progress)
                return await disk.blocking(target.commit)
            finally:
                with anyio.CancelScope(shield=True):
                    await disk.blocking(target.discard)

    async def _fill(self, target: Target, images: Sequence[Wanted], request: ExportRequest, progress: ExportProgress) -> None:
        documents = await self._documents(images)
        found = [(i.record, documents[i.record.manifest]) for i in images if i.record.artifact_type]
        written = await self._artifacts(found, target, progress)
        for layer in progress.layers:
            if layer.diff_id not in written:
                written[layer.diff_id] = await self._write(target, layer, request, progress)
        files = export_documents.docker if request.format is Format.DOCKER else export_documents.oci
        named = [
            export_documents.Named(
                documents[i.record.manifest],
                documents[i.record.config_digest],
                [written[y.diff_id] for y in i.record.layers],
                i.names,
                bool(i.record.artifact_type),
            )
            for i in images
        ]
        for name, data in files(named, archive=request.format is not Format.OCI_DIR):
            await disk.blocking(target.add, name, data)

    async def _documents(self, images: Sequence[Wanted]) -> Mapping[str, Document]:
        wanted = {digest for image in images for digest in (image.record.manifest, image.record.config_digest)}
        found = await self._catalogue.blobs(wanted)
        for digest in wanted:
            if digest not in found or not export_documents.digest_is(digest, found[digest].data):
                raise CorruptData(f"document {digest} is damaged: cri-bridge image check --repair fetches it again")
        return {digest: Document(digest, blob.data) for digest, blob in found.items()}

    async def _artifacts(self, found: Sequence[tuple[Record, Document]], target: Target, progress: ExportProgress) -> dict[str, Written]:
        """Write the files of artifacts, each content once; by what they have for diff ids. They come out as they came in."""
        written: dict[str, Written] = {}
        contents: set[str] = set()
        for record, document in found:
            manifest = parse(document.data)
            assert isinstance(manifest, Manifest)
            for layer, file in zip(record.layers, artifacts.files(manifest), strict=True):
                written[layer.diff_id] = Written(layer.diff_id, file.digest, file.size, str(Compression.NONE))
                if file.digest not in contents:
                    contents.add(file.digest)
                    await disk.blocking(_copy_file, self._directories.files(layer.id), file, target)
                progress.finished.add(layer.diff_id)
        return written

    async def _write(self, target: Target, layer: Layer, request: ExportRequest, progress: ExportProgress) -> Written:
        counter = os.memfd_create("export", os.MFD_CLOEXEC)
        try:
            os.pwrite(counter, _COUNTER.pack(0), 0)
            out = await disk.blocking(target.begin)
            with progress.writing(layer, counter):
                report = await _child(self._directories.layer(layer.id), out, counter, request.compression)
        finally:
            os.close(counter)
        if report["diff_id"] != layer.diff_id:
            raise CorruptData(_damaged(layer, f"its files make {report['diff_id']}"))
        made = Written(layer.diff_id, report["digest"], int(report["size"]), str(request.compression))
        name = export_documents.docker_layer(made) if request.format is Format.DOCKER else export_documents.blob_name(made.digest)
        await disk.blocking(target.end, name, made.size)
        return made


async def _opened(request: ExportRequest) -> Target:
    def make() -> Target:
        try:
            return Folder(request.path) if request.format is Format.OCI_DIR else Archive(request.path, replace=request.replace)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise InvalidRequest(f"{request.path.parent} is no directory", field="path") from exc

    return await disk.blocking(make)


async def _child(directory: Path, out: int, counter: int, compression: Compression) -> Mapping[str, str]:
    log = await disk.blocking(os.open, directory / TAR_LOG, os.O_RDONLY | os.O_CLOEXEC)
    try:
        argv = [sys.executable, "-I", "-S", "-c", _CODE, import_path(), str(directory / FILES), *map(str, (log, out, counter)), compression]
        done = await process.run(argv, timeout=math.inf, max_output=1 << 16, pass_fds=(log, out, counter))
    finally:
        os.close(log)
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode == 0 and lines and lines[-1] == "done":
        return dict(line.split(" ", 1) for line in lines[:-1])
    kind, _, message = lines[-1].removeprefix("error ").partition(" ") if lines else ("", "", "")
    if kind == "archive":
        raise CorruptData(f"layer {directory.name} is damaged: {message}; cri-bridge image check --full --repair fetches it again")
    if kind == "host":
        code, _, text = message.partition(" ")
        raise HostError(f"writing the archive failed: {text}", errno=int(code))
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    raise HostError(f"the exporting process ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")


def _copy_file(files: Path, file: ArtifactFile, target: Target) -> None:
    """Blocks. Raises CorruptData when the file is not what came, OSError."""
    found, size = hashlib.new(file.digest.partition(":")[0]), 0
    source, out = twins.open_file(files, file.path), target.begin()
    try:
        while piece := os.read(source, _PIECE):
            found.update(piece)
            size += len(piece)
            write(out, memoryview(piece))
    finally:
        os.close(source)
    if (found.hexdigest(), size) != (file.digest.partition(":")[2], file.size):
        raise CorruptData(f"{file.path!r} is damaged: cri-bridge image check --full --repair fetches it again")
    target.end(export_documents.blob_name(file.digest), size)


def _damaged(layer: Layer, what: str) -> str:
    return f"layer {layer.diff_id} is damaged: {what}; cri-bridge image check --full --repair fetches it again"
