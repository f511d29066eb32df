"""Layers from first byte to last: staged by single flights, committed in chains, dropped when nothing stands on them.

A *staged* layer is unpacked and checked but lies below ``tmp``; it belongs to one chain id. It stays for a while after a failed
pull, so that the retry fetches only what is missing. *Committing* renames staged layers into place, syncs the file system once
and only then writes their rows (design promise 8).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge import log
from bridge.aio import SingleFlight, Supervisor
from bridge.errors import BridgeError, CorruptData, HostError, Unavailable
from bridge.images import disk, twins
from bridge.images.artifacts import ArtifactFile
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.inherit import complete, copy_attributes
from bridge.images.rows import Layer
from bridge.images.unpack import FILES, Unpacked

_logger = log.get("images.layers")
_FLIGHT_LINGER = 1.0
_REMOVE_AGAIN_SECONDS = 2.0

Unpack = Callable[[Path, bool], Awaitable[Unpacked]]
"""Unpacks one layer into a directory; the flag says that it is the second try, after damaged bytes came."""


@dataclass(frozen=True, slots=True)
class Staged:
    """An unpacked layer in ``directory``, below ``tmp``."""

    directory: Path
    unpacked: Unpacked


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer (image-spec config.md "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(f"sha256:{hashlib.sha256(f'{chain[-1]} {diff_id}'.encode()).hexdigest()}" if chain else diff_id)
    return chain


class LayerStore:
    """The layers of one store. ``keep_seconds`` is how long a staged layer outlives the last pull that wanted it."""

    def __init__(
        self, directories: Directories, catalogue: Catalogue, supervisor: Supervisor, *, parallel: int, keep_seconds: float
    ) -> None:
        self._directories = directories
        self._catalogue = catalogue
        self._supervisor = supervisor
        self._budget = anyio.CapacityLimiter(parallel)
        self._keep = keep_seconds
        self._flights: SingleFlight[str, Staged] = SingleFlight(supervisor, "layer", linger=_FLIGHT_LINGER)
        self._staged: dict[str, Staged] = {}
        self._wanted: Counter[str] = Counter()
        self._committing = anyio.Lock()
        self._landing: list[Layer] = []
        self._next = 1

    def start_numbers(self, first: int) -> None:
        """Layer directories are numbered from ``first`` on."""
        self._next = first

    async def stop(self, seconds: float) -> None:
        """Cancel every transfer; returns when their children are gone or after ``seconds``."""
        self._flights.cancel_all()
        with anyio.move_on_after(seconds):
            await self._flights.wait_idle()

    @contextmanager
    def wanted(self, chain: Sequence[str]) -> Iterator[None]:
        """While the block runs none of ``chain`` is dropped, neither committed nor staged."""
        self._wanted.update(chain)
        try:
            yield
        finally:
            self._wanted.subtract(chain)
            left = [chain_id for chain_id in chain if self._wanted[chain_id] <= 0]
            for chain_id in left:
                del self._wanted[chain_id]
            if any(chain_id in self._staged or self._is_orphan(chain_id) for chain_id in left):
                self._spawn("staged layers", lambda: self._expire(left))

    def has(self, chain_id: str) -> bool:
        """Whether the layer is here, committed or about to be."""
        return chain_id in self._staged or self._catalogue.is_sound(chain_id)

    def twin(self, diff_id: str, file: ArtifactFile | None) -> Path | None:
        """Where a layer with this content lies whose tar can be made again from it (or that is this ``file``), on whatever base."""
        ready = file is not None
        for layer in self._catalogue.layers.values():
            if layer.diff_id == diff_id and (layer.exact or ready) and self._catalogue.is_sound(layer.chain_id):
                return self._directories.layer(layer.id)
        for staged in self._staged.values():
            if staged.unpacked.diff_id == diff_id and (staged.unpacked.exact or ready):
                return staged.directory
        landing = (layer for layer in self._landing if layer.diff_id == diff_id and (layer.exact or ready))
        return next((self._directories.layer(layer.id) for layer in landing), None)

    def content(self, directory: Path, file: ArtifactFile | None) -> AsyncGenerator[bytes]:
        """The tar of the layer in ``directory``, made again, or the ``file`` that it is. Raises CorruptData, HostError."""
        if file is not None:
            return twins.bytes_of(directory / FILES, file.path)
        return twins.tar_of(directory, self._directories.scratch(), lambda scratch: self.bury([scratch]))

    def is_wanted(self, chain_id: str) -> bool:
        """Whether a running pull, import or check needs the layer."""
        return self._wanted[chain_id] > 0

    def _is_orphan(self, chain_id: str) -> bool:
        """Whether it is committed, but the image it was for is not."""
        layer = self._catalogue.layers.get(chain_id)
        return layer is not None and not any(layer in record.layers for record in self._catalogue.images.values())

    async def stage(self, chain_id: str, unpack: Unpack) -> None:
        """Have ``chain_id`` staged, by ``unpack`` into a new directory unless another pull is at it already.

        A flight of another pull that failed is not our failure: then we try ourselves.
        """
        mine = False

        async def work() -> Staged:
            nonlocal mine
            mine = True
            async with self._budget:
                return await self._unpack(chain_id, unpack)

        while chain_id not in self._staged and not self._catalogue.is_sound(chain_id):
            try:
                await self._flights.join(chain_id, work)
            except BridgeError:
                if mine:
                    raise

    async def _unpack(self, chain_id: str, unpack: Unpack) -> Staged:
        try:
            directory, unpacked = await self._attempt(unpack, False)
        except CorruptData as exc:
            _logger.warning("layer %s is fetched once more: %s", chain_id, exc)
            directory, unpacked = await self._attempt(unpack, True)
        staged = self._staged[chain_id] = Staged(directory, unpacked)
        if not self._wanted[chain_id]:
            self._spawn("staged layers", lambda: self._expire([chain_id]))
        return staged

    async def _attempt(self, unpack: Unpack, again: bool) -> tuple[Path, Unpacked]:
        directory = self._directories.scratch()
        try:
            return directory, await unpack(directory, again)
        except BaseException:
            self.bury([directory])
            raise

    async def commit(self, diff_ids: Sequence[str]) -> tuple[Layer, ...]:
        """Make the staged layers of an image live; returns all its layers from base to top. Call within ``wanted``.

        Raises HostError, and Unavailable when a staged layer was lost (a damaged disk), which a retry mends.
        """
        # One at a time: they share the disk's sync anyway, and two images may be about to commit the same layer.
        async with self._committing:
            if not all(self._catalogue.is_sound(chain_id) for chain_id in chain_ids(diff_ids)):
                await self._install(diff_ids)
        return tuple(self._catalogue.layers[chain_id] for chain_id in chain_ids(diff_ids))

    async def _install(self, diff_ids: Sequence[str]) -> None:
        layers: list[Layer] = []
        new = self._landing = []
        with anyio.CancelScope(shield=True):  # renames, one sync, one commit: bounded, and half of it would be rubbish
            try:
                for chain_id, diff_id in zip(chain_ids(diff_ids), diff_ids, strict=True):
                    if self._catalogue.is_sound(chain_id):
                        layers.append(self._catalogue.layers[chain_id])
                        continue
                    layers.append(await self._install_one(chain_id, diff_id, layers))
                    new.append(layers[-1])
                await disk.sync_file_system(self._directories.root)
                await self._catalogue.add_layers(new)
            except BridgeError:
                await self._discard([layer.id for layer in new])
                raise
            finally:
                self._landing = []

    async def _install_one(self, chain_id: str, diff_id: str, below: Sequence[Layer]) -> Layer:
        staged = self._staged.get(chain_id)
        if staged is None:
            raise Unavailable(f"layer {chain_id} is no longer staged: pull again")
        lowers = [self._directories.files(layer.id) for layer in reversed(below)]
        implicit, found = staged.unpacked.implicit, staged.unpacked
        await disk.blocking(copy_attributes, staged.directory, implicit, lowers)
        listing, own_bytes, own_inodes = await disk.blocking(complete, staged.directory, implicit)
        damaged = self._catalogue.layers.get(chain_id)
        if damaged is None:
            number, self._next = self._next, self._next + 1
        else:
            number = damaged.id
        del self._staged[chain_id]
        try:
            if damaged is None:
                await disk.blocking(staged.directory.rename, self._directories.layer(number))
            else:
                await self._replace(number, staged.directory)
        except BridgeError:
            self.bury([staged.directory])
            await self._discard([number])
            raise
        size, inodes = found.disk_bytes + own_bytes, found.inodes + own_inodes
        return Layer(number, chain_id, below[-1].id if below else None, diff_id, size, inodes, found.tar_bytes, found.exact, listing)

    async def _discard(self, numbers: Sequence[int]) -> None:
        """Delete the directories of layers that could not be committed."""
        # A write that failed may have happened all the same, and then the index has read so.
        graves = [await self._directories.discard(self._directories.layer(n)) for n in numbers if n not in self._catalogue.layers_by_id]
        self.bury([grave for grave in graves if grave is not None])

    async def _replace(self, number: int, fresh: Path) -> None:
        """Mend a damaged layer. Containers that stand on it keep its files until they are gone."""
        keep = self._catalogue.in_use(number)
        grave = await disk.blocking(lambda: self._directories.replace_layer(fresh, number, keep=keep))
        self.bury([grave] if grave is not None else [])

    async def drop_unused(self) -> int:
        """Drop every committed layer that no image, snapshot or running pull stands on; how many that were."""
        used = {layer.id for record in self._catalogue.images.values() for layer in record.layers}
        for chain_id in self._wanted:
            layer = self._catalogue.layers.get(chain_id)
            used.update(below.id for below in self._catalogue.chain(layer.id if layer else None))
        unused = sorted((y for y in self._catalogue.layers_by_id.values() if y.id not in used), key=lambda y: -y.id)
        if unused:
            await self._catalogue.drop_layers(unused)
            # A rename may reach the disk before the rows do: after a power cut they would name directories that are gone.
            await self._catalogue.sync()
            graves = [await self._directories.discard(self._directories.layer(layer.id)) for layer in unused]
            self.bury([grave for grave in graves if grave is not None])
        return len(unused)

    def bury(self, graves: Sequence[Path]) -> None:
        """Delete directories below ``tmp`` in the background."""
        if graves:
            self._spawn("remove", lambda: self._remove(graves))

    def _spawn(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            self._supervisor.spawn(f"images: {name}", work)
        except Unavailable:  # shutting down: the next start sweeps tmp
            _logger.debug("%s is left to the next start", name)

    async def _remove(self, graves: Sequence[Path]) -> None:
        failed = []
        for grave in graves:
            try:
                await disk.remove_tree(grave)
            except HostError as exc:
                _logger.debug("%s", exc)
                failed.append(grave)
        if failed:  # a child of a server that was killed may have been writing its last file
            await anyio.sleep(_REMOVE_AGAIN_SECONDS)
        for grave in failed:
            try:
                await disk.remove_tree(grave)
            except HostError as exc:
                _logger.error("%s; the next start tries again", exc)

    def drop_unfinished(self) -> int:
        """Drop staged layers that no running pull wants, without waiting for their time; how many that were."""
        idle = [chain_id for chain_id in self._staged if not self._wanted[chain_id]]
        self.bury([self._staged.pop(chain_id).directory for chain_id in idle])
        return len(idle)

    async def _expire(self, chain: Sequence[str]) -> None:
        await anyio.sleep(self._keep)
        idle = [chain_id for chain_id in chain if chain_id in self._staged and not self._wanted[chain_id]]
        self.bury([self._staged.pop(chain_id).directory for chain_id in idle])
        await self.drop_unused()
