"""From a resolved manifest to an image in the catalogue: stage what is missing, commit, record. For pulls and imports alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge import log
from bridge.errors import BridgeError, CorruptData
from bridge.images import artifacts, disk
from bridge.images.artifacts import ArtifactFile
from bridge.images.catalogue import Catalogue
from bridge.images.layers import LayerStore, chain_ids
from bridge.images.manifest import Descriptor, Manifest, parse_config
from bridge.images.progress import Board, Pull, Wanted
from bridge.images.rows import Blob, NewImage, Record
from bridge.images.twins import Turns
from bridge.images.unpack import Unpacked, Unpacker

_logger = log.get("images.assemble")

Source = Callable[[Descriptor, bool], AsyncGenerator[bytes]]
"""The bytes of a layer blob; the flag asks for the most trustworthy place, after damaged bytes came."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An image to be added. ``new.blobs`` hold manifest, config and what led to them. ``checked``: layer digests are to be verified
    on the compressed bytes too (an archive without manifests knows only the uncompressed ones). ``files`` are an artifact's layers."""

    new: NewImage
    layers: Sequence[Descriptor]
    diff_ids: Sequence[str]
    files: Sequence[ArtifactFile] = ()
    checked: bool = True


def plan(
    manifest: Manifest,
    documents: Sequence[Blob],
    config: Blob,
    names: Sequence[str],
    digests: Sequence[tuple[str, str]],
    *,
    checked: bool = True,
    kept: bool = False,
) -> Plan:
    """What becomes of ``manifest``, the last of the ``documents`` that led to it; ``kept`` as in NewImage.

    Raises CorruptData when config and manifest disagree.
    """
    blobs, last = [*documents, config], documents[-1].digest
    if manifest.artifact:
        found = artifacts.files(manifest)
        new = NewImage(last, last, blobs, names, digests, manifest.artifact, config.digest, kept)
        return Plan(new, manifest.layers, artifacts.idents(found), found)
    diff_ids = parse_config(config.data).diff_ids
    if len(manifest.layers) != len(diff_ids):
        raise CorruptData(f"the manifest has {len(manifest.layers)} layers, the config names {len(diff_ids)}")
    return Plan(NewImage(config.digest, last, blobs, names, digests, kept=kept), manifest.layers, diff_ids, checked=checked)


class Assembler:
    """Adds images to the catalogue."""

    def __init__(self, catalogue: Catalogue, layers: LayerStore, unpacker: Unpacker) -> None:
        self._catalogue = catalogue
        self._layers = layers
        self._unpacker = unpacker
        self._turns = Turns()
        self.board = Board(layers.has)

    async def assemble(self, wanted: Plan, source: Source, shown: Pull | None = None) -> Record:
        """Fetch and unpack the layers that are missing, all at once, and record the image last; ``shown`` is told which they are.

        Raises CorruptData, LimitExceeded, HostError, and what ``source`` raises. Layers that were good are kept for a retry.
        """
        diff_ids = wanted.diff_ids
        chain = chain_ids(diff_ids)
        if shown is not None:
            shown.announce([Wanted(c, layer.digest, layer.size) for c, layer in zip(chain, wanted.layers, strict=True)])
        with self._layers.wanted(chain):
            missing = [n for n, chain_id in enumerate(chain) if not self._catalogue.is_sound(chain_id)]
            await together([self._stager(wanted, chain[n], n, source) for n in missing])
            with self.board.step("commit"):
                layers = await self._layers.commit(diff_ids)
                record = await self._catalogue.add_image(wanted.new, layers)
                await self._catalogue.sync()  # who pulled it may rely on it, also after a power cut
            return record

    def _stager(self, wanted: Plan, chain_id: str, number: int, source: Source) -> Callable[[], Awaitable[None]]:
        layer, diff_id = wanted.layers[number], wanted.diff_ids[number]
        file = wanted.files[number] if wanted.files else None
        digest = layer.digest if wanted.checked else None

        async def unpack(directory: Path, again: bool) -> Unpacked:
            async with self._turns.turn(diff_id):
                unpacked = None if again else await self._from_twin(directory, diff_id, file)
                return unpacked or await fetch(directory, again)

        async def fetch(directory: Path, again: bool) -> Unpacked:
            try:
                with self.board.step("layer", layer=layer.digest):
                    unpacked = await self._unpacker.unpack(directory, self.board.counted(chain_id, source(layer, again)), digest, file)
            finally:
                self.board.landed(chain_id)
            if unpacked.diff_id != diff_id:
                raise CorruptData(f"layer {layer.digest} unpacks to {unpacked.diff_id}; the image's config says {diff_id}")
            return unpacked

        return lambda: self._layers.stage(chain_id, unpack)

    async def _from_twin(self, directory: Path, diff_id: str, file: ArtifactFile | None) -> Unpacked | None:
        """Unpack what is here already on another base; None when it isn't, or is damaged: then it is fetched."""
        tried: set[Path] = set()
        while (twin := self._layers.twin(diff_id, file)) is not None and twin not in tried:  # another place: it was just committed
            tried.add(twin)
            try:
                digest = file.digest if file is not None else None
                unpacked = await self._unpacker.unpack(directory, self._layers.content(twin, file), digest, file)
            except BridgeError as exc:
                _logger.info("layer %s can't be copied from %s: %s", diff_id, twin, exc)
            else:
                if unpacked.diff_id == diff_id:
                    return unpacked
                _logger.warning("layer %s in %s is damaged: an image check mends it", diff_id, twin)
            await disk.remove_tree(directory)
        return None


async def together(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all at once; the first failure cancels the others and is raised as it is, not in a group."""
    failures: list[BridgeError] = []

    async def run(work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            await work()
        except BridgeError as exc:
            failures.append(exc)
            scope.cancel()

    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(run, work, group.cancel_scope)
    if failures:
        raise failures[0]
