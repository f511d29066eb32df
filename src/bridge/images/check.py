"""Is everything in the store what it was when it was committed? And mending what is not: one layer is fetched again, alone.

A layer that is found damaged is marked in the index. Then its images count as absent: a kubelet pulls them again, which fetches
that layer only; ``repair`` does the same now. Containers that run keep the files that they have.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio

from bridge import log
from bridge.errors import BridgeError, HostError, ImagePullFailed
from bridge.host.database import Database
from bridge.images import damage, index_file
from bridge.images.catalogue import Catalogue
from bridge.images.disk import Directories
from bridge.images.layers import LayerStore
from bridge.images.progress import LayerProgress, LayerState
from bridge.images.rows import Layer, Record
from bridge.images.verify import Verdict, verify

Refetch = Callable[[Record, str, str], Awaitable[None]]
"""Fetches what is damaged of an image again, from a repository in which it has that digest."""

_SLACK = 1 << 16
_DAY = 86_400.0
_SHORTEST_PAUSE = 60.0
_logger = log.get("images.check")


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged layer: its directory's number, what is wrong, the images and the containers that stand on it."""

    chain_id: str
    number: int
    problems: Sequence[str]
    images: Sequence[str]
    containers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. ``index`` is what is wrong with the index, ``blobs`` are damaged manifests and configs.

    ``layers`` counts those that were looked at, ``recounted`` those whose counters were wrong and are right now. ``full``: all bytes
    were read.
    """

    full: bool
    layers: int
    damaged: Sequence[Damaged] = ()
    index: Sequence[str] = ()
    blobs: Sequence[str] = ()
    recounted: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged."""
        return not (self.damaged or self.index or self.blobs)


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of an image that had something damaged: ``error`` is empty when it is whole again."""

    image: str
    names: Sequence[str]
    error: str = ""


@dataclass(slots=True)
class _Found:
    damaged: list[Damaged] = field(default_factory=list)
    recounted: int = 0


@dataclass(slots=True)
class CheckProgress:
    """How far a check is, by layer. Its sizes are those of the layers' tars."""

    layers: Sequence[Layer] = ()
    finished: int = 0

    def show(self) -> Sequence[LayerProgress]:
        """A copy for people."""
        return [self._layer(number, layer) for number, layer in enumerate(self.layers)]

    def _layer(self, number: int, layer: Layer) -> LayerProgress:
        done = number < self.finished
        state = LayerState.DONE if done else LayerState.CHECKING if number == self.finished else LayerState.WAITING
        return LayerProgress(layer.chain_id, layer.tar_bytes, layer.tar_bytes if done else 0, state)


class Checker:
    """Checks and repairs one store. One at a time."""

    def __init__(self, database: Database, catalogue: Catalogue, directories: Directories, layers: LayerStore, refetch: Refetch) -> None:
        self._database = database
        self._catalogue = catalogue
        self._directories = directories
        self._layers = layers
        self._refetch = refetch
        self._busy = anyio.Lock()

    async def check(self, full: bool, progress: CheckProgress) -> Report:
        """Compare the store with its index: all attributes of all files, and with ``full`` every byte.

        A layer that a full check finds whole is no longer held to be damaged. Raises HostError when it can't be done.
        """
        start = time.monotonic()
        async with self._busy:
            index = await self._database.read(index_file.faults)
            blobs = await self._database.read(index_file.damaged_blobs)
            found = _Found()
            layers = progress.layers = list(self._catalogue.layers_by_id.values())
            for layer in layers:
                await self._check_layer(layer, found, full=full, rate=0)
                progress.finished += 1
        return Report(full, len(layers), found.damaged, index, blobs, found.recounted, time.monotonic() - start)

    async def _check_layer(self, layer: Layer, found: _Found, *, full: bool, rate: int) -> None:
        with self._layers.wanted([layer.chain_id]):
            if self._catalogue.layers_by_id.get(layer.id) is not layer:
                return  # dropped or replaced meanwhile
            verdict = await verify(self._directories.layer(layer.id), layer, content=full, rate=rate)
            if self._catalogue.layers_by_id.get(layer.id) is not layer:
                return
            if verdict.problems:
                await damage.mark(self._catalogue, layer, "; ".join(verdict.problems))
                found.damaged.append(self._damaged(layer, verdict.problems))
                return
            if full or self._catalogue.faults.get(layer.id) == damage.GONE:  # only a full check can take back what a full check said
                await self._catalogue.verified(layer.id, "")
            found.recounted += await self._recount(layer, verdict)

    async def _recount(self, layer: Layer, verdict: Verdict) -> bool:
        if not verdict.inodes:
            return False
        wrong = abs(verdict.disk_bytes - layer.disk_bytes) > layer.disk_bytes // 100 + _SLACK or verdict.inodes != layer.inodes
        if wrong:
            await self._catalogue.add_layers([replace(layer, disk_bytes=verdict.disk_bytes, inodes=verdict.inodes)])
        return wrong

    def _damaged(self, layer: Layer, problems: Sequence[str]) -> Damaged:
        images = [record for record in self._catalogue.images.values() if any(y.id == layer.id for y in record.layers)]
        containers = {container for record in images for container in self._catalogue.users(record.id)}
        names = sorted({name for record in images for name in (record.names or [record.id])})
        return Damaged(layer.chain_id, layer.id, problems, names, sorted(containers))

    async def repair(self) -> Sequence[Repair]:
        """Fetch again what is known to be damaged, from where it came. An image that came from an archive must be imported again."""
        async with self._busy:
            blobs = set(await self._database.read(index_file.damaged_blobs))
            broken = [r for r in self._catalogue.images.values() if not self._catalogue.is_whole(r) or blobs & r.documents]
            return [await self._repair(record) for record in broken]

    async def _repair(self, record: Record) -> Repair:
        names = sorted(record.names)
        error = "it is not known from which repository it came: import or pull it again"
        for repository, digest in sorted(record.digests):
            try:
                await self._refetch(record, repository, digest)
            except BridgeError as exc:
                error = str(exc)
                if isinstance(exc, ImagePullFailed):  # a clear no, which may be meant for the credentials
                    error += " (asked with the server's own credentials; cri-bridge image pull --creds mends it with others)"
                continue
            _logger.info("image %s is whole again: what was damaged was fetched from %s", record.id, repository)
            return Repair(record.id, names)
        return Repair(record.id, names, error)

    async def verify_for_ever(self, days: float, rate: int) -> None:
        """Read every layer once in ``days``, at most ``rate`` bytes a second; the one that was not looked at for longest is next."""
        while True:
            known = self._catalogue.verified_ns
            due = [(known[number], layer) for number, layer in self._catalogue.layers_by_id.items() if number not in self._catalogue.faults]
            oldest, layer = min(due, key=lambda each: each[0], default=(0, None))
            wait = oldest / 1e9 + days * _DAY - time.time()
            if layer is None or wait > 0:
                await anyio.sleep(min(max(wait, 0.0) or _SHORTEST_PAUSE, _SHORTEST_PAUSE))
                continue
            try:
                async with self._busy:
                    await self._check_layer(layer, _Found(), full=True, rate=rate)
            except HostError as exc:
                _logger.error("layer %s can't be verified: %s", layer.chain_id, exc)
                await anyio.sleep(_SHORTEST_PAUSE)
