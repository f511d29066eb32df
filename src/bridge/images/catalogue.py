"""What the store holds: images, names, layers, snapshots. In memory for readers, in ``index.db`` for the next start.

The only writer of both. Each change is one transaction, then the same change in memory without a wait in between, shielded from
the caller's cancellation, so that the two never differ. References between rows are foreign keys: SQLite itself refuses to
drop a layer that an image stands on, or an image that a container uses.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import anyio

from bridge import log
from bridge.errors import BridgeError, HostError, InUse, NotFound
from bridge.host.database import Database
from bridge.images import contents, schema
from bridge.images.contents import Contents
from bridge.images.rows import Blob, Layer, NewImage, Record

T = TypeVar("T")
_logger = log.get("images.catalogue")
_BLOBS = "SELECT digest, media_type, data FROM blobs WHERE digest IN (SELECT value FROM json_each(?))"
_UPDATE = "UPDATE layers SET disk_bytes = ?, inodes = ?, tar_bytes = ?, exact = ?, listing = ?, fault = '', verified_ns = ? WHERE id = ?"
# The digest is the document's own: one that differs is damaged.
_ADD_BLOB = "INSERT INTO blobs VALUES (?,?,?) ON CONFLICT (digest) DO UPDATE SET data = excluded.data WHERE data IS NOT excluded.data"


@contextmanager
def _still_there(image: str) -> Iterator[None]:
    """The removal of ``image`` may be in the writer's queue already: what then refers to nothing finds it gone."""
    try:
        yield
    except InUse as exc:
        raise NotFound(f"image {image} is not in the store: it was removed just now") from exc


class Catalogue:
    """The index. Open it with ``load``; the mappings are for reading only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hold(Contents())
        self._behind = False  # memory is not what the index says, as far as anybody knows
        self._reloading = anyio.Lock()
        self._meanwhile: list[Callable[[], object]] | None = None  # what was remembered since a reload under way began

    async def load(self) -> None:
        """Read everything. Called once."""
        self._hold(await self._database.read(contents.read))

    def _hold(self, found: Contents) -> None:
        self.images, self.names = found.images, found.names
        self.layers, self.layers_by_id = found.layers, found.layers_by_id
        self.snapshots, self.holds = found.snapshots, found.holds
        self.faults, self.verified_ns = found.faults, found.verified_ns

    def chain(self, top: int | None) -> tuple[Layer, ...]:
        """The layers from the base up to ``top``."""
        return contents.chain(self.layers_by_id, top)

    def is_whole(self, record: Record) -> bool:
        """Whether nothing is known to be wrong with any layer of the image."""
        return not self.faults or not any(layer.id in self.faults for layer in record.layers)

    def is_sound(self, chain_id: str) -> bool:
        """Whether the layer is there and nothing is known to be wrong with it."""
        layer = self.layers.get(chain_id)
        return layer is not None and layer.id not in self.faults

    def in_use(self, layer: int) -> bool:
        """Whether a container stands on the layer, or holds an image that does."""
        used = set(self.snapshots.values()).union(*self.holds.values())
        return any(below.id == layer for image in used for below in self.images[image].layers)

    def users(self, image: str) -> list[str]:
        """The containers whose snapshot stands on ``image``, or that hold it."""
        standing = {container for container, used in self.snapshots.items() if used == image}
        return sorted(standing | {container for container, held in self.holds.items() if image in held})

    async def add_layers(self, layers: Sequence[Layer]) -> None:
        """Record layers that are complete and synced on disk, parents first; one that is known gets the new numbers and is sound again."""
        now = time.time_ns()
        first = [(y.id, y.chain_id, y.parent, y.diff_id, now) for y in layers if y.id not in self.layers_by_id]

        def write(c: sqlite3.Connection) -> None:
            c.executemany("INSERT INTO layers VALUES (?,?,?,?,0,0,0,0,?,0,'','')", first)
            c.executemany(_UPDATE, [(y.disk_bytes, y.inodes, y.tar_bytes, int(y.exact), y.listing, now, y.id) for y in layers])

        def remember() -> None:
            self._remember(layers)
            for layer in layers:
                self.faults.pop(layer.id, None)
                self.verified_ns[layer.id] = now
            if len(first) < len(layers):
                self.images = {i: replace(r, layers=[self.layers_by_id[y.id] for y in r.layers]) for i, r in self.images.items()}

        await self._change(write, remember)

    async def verified(self, layer: int, fault: str) -> None:
        """Record that a layer was checked just now, and what is wrong with it ("" when nothing is)."""
        now = time.time_ns()

        def remember() -> None:
            if layer in self.layers_by_id:
                self.verified_ns[layer] = now
                self.faults.pop(layer, None)
                if fault:
                    self.faults[layer] = fault

        sql = "UPDATE layers SET fault = ?, verified_ns = ? WHERE id = ?"
        await self._change(lambda c: c.execute(sql, (fault, now, layer)), remember)

    async def sync(self) -> None:
        """Have every change on the disk, so that no power cut takes it back."""
        await self._database.sync()

    async def drop_layers(self, layers: Sequence[Layer]) -> None:
        """Forget layers, children first. They vanish from memory before the wait, so that nobody builds on them meanwhile."""

        def forget() -> None:
            for layer in layers:
                self.layers.pop(layer.chain_id, None)
                self.layers_by_id.pop(layer.id, None)
                self.faults.pop(layer.id, None)
                self.verified_ns.pop(layer.id, None)

        forget()
        try:
            await self._change(lambda c: c.executemany("DELETE FROM layers WHERE id = ?", [(y.id,) for y in layers]), forget)
        except InUse:
            self._remember(layers)
            raise

    async def add_image(self, new: NewImage, layers: Sequence[Layer]) -> Record:
        """Add an image, or more names and digests to one that is there. A name that pointed elsewhere moves."""
        now, known = time.time_ns(), self.images.get(new.id)
        if known is not None and known.has_all_of(new):
            return known

        def write(c: sqlite3.Connection) -> None:
            c.executemany(_ADD_BLOB, [(b.digest, b.media_type, b.data) for b in new.blobs])
            top = layers[-1].id if layers else None
            row = (new.id, new.manifest, top, now, new.artifact_type, new.own_config or None)
            c.execute("INSERT OR IGNORE INTO images VALUES (?,?,?,?,?,?)", row)
            c.executemany("INSERT OR REPLACE INTO names VALUES (?,?,?)", [(name, new.id, now) for name in new.names])
            c.executemany("INSERT OR REPLACE INTO digests VALUES (?,?,?)", [(*pair, new.id) for pair in new.digests])

        def remember() -> None:
            empty = (frozenset[str](), frozenset[tuple[str, str]]())
            made = Record(new.id, new.manifest, new.run, tuple(layers), *empty, new.artifact_type, new.own_config)
            old = self.images.get(new.id) or made
            for other in [self.images[self.names[n]] for n in new.names if self.names.get(n, new.id) != new.id]:
                self.images[other.id] = replace(other, names=other.names - set(new.names))
            self.images[new.id] = replace(old, names=old.names | set(new.names), digests=old.digests | set(new.digests))
            self.names.update(dict.fromkeys(new.names, new.id))

        await self._change(write, remember)
        return self.images[new.id]

    async def drop_image(self, image: str, names: Iterable[str] | None = None) -> bool:
        """Remove an image with its names and digests; absent is success. Raises InUse while a snapshot stands on it.

        With ``names`` only these go, and the image only if it has no others by now: then True.
        """
        gone = list(names) if names is not None else None
        left = False

        def write(c: sqlite3.Connection) -> None:
            nonlocal left
            if gone is not None:
                c.executemany("DELETE FROM names WHERE name = ? AND image = ?", [(name, image) for name in gone])
                left = c.execute("SELECT 1 FROM names WHERE image = ?", (image,)).fetchone() is not None
            if not left:
                c.execute("DELETE FROM images WHERE id = ?", (image,))
                c.execute(schema.DROP_UNUSED_BLOBS)

        def forget() -> None:
            record = self.images.get(image)
            if record is None:
                return
            self._forget_names(image, gone if left and gone is not None else record.names)
            if left:
                self.images[image] = replace(record, names=record.names - set(gone or ()))
            else:
                del self.images[image]

        await self._change(write, forget)
        return not left

    def _forget_names(self, image: str, names: Iterable[str]) -> None:
        for name in names:
            if self.names.get(name) == image:
                del self.names[name]

    async def add_snapshot(self, container: str, image: str) -> None:
        """Record that ``container`` has a writable layer on ``image``. Raises NotFound when that is gone."""
        record = self.images.get(image)
        if record is None:
            raise NotFound(f"image {image} is not in the store")
        top = record.layers[-1].id if record.layers else None
        row = (container, image, top, time.time_ns())
        with _still_there(image):
            await self._change(
                lambda c: c.execute("INSERT INTO snapshots VALUES (?,?,?,?)", row), lambda: self.snapshots.__setitem__(container, image)
            )

    async def drop_snapshot(self, container: str) -> None:
        """Forget a container's writable layer; absent is success."""
        await self._change(
            lambda c: c.execute("DELETE FROM snapshots WHERE container = ?", (container,)), lambda: self.snapshots.pop(container, None)
        )

    async def add_hold(self, container: str, image: str) -> None:
        """Record that ``container`` uses ``image`` besides the one it stands on; again is success. Raises NotFound when that is gone."""
        if image not in self.images:
            raise NotFound(f"image {image} is not in the store")
        with _still_there(image):
            await self._change(
                lambda c: c.execute("INSERT OR IGNORE INTO holds VALUES (?,?)", (container, image)),
                lambda: self._remember_hold(container, image),
            )

    async def drop_holds(self, container: str) -> None:
        """Forget what a container holds; nothing is success."""
        await self._change(
            lambda c: c.execute("DELETE FROM holds WHERE container = ?", (container,)), lambda: self.holds.pop(container, None)
        )

    def _remember_hold(self, container: str, image: str) -> None:
        self.holds[container] = self.holds.get(container, frozenset()) | {image}

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, Blob]:
        """The kept documents of ``digests``, as they lie there: one may be damaged."""
        wanted = json.dumps(list(digests))
        return await self._database.read(lambda c: {row[0]: Blob(*row) for row in c.execute(_BLOBS, (wanted,))})

    async def next_id(self) -> int:
        """The number above every layer id ever given."""

        def read(c: sqlite3.Connection) -> int:
            row = c.execute("SELECT seq FROM sqlite_sequence WHERE name = 'layers'").fetchone()
            return int(row[0]) + 1 if row else 1

        return await self._database.read(read)

    def _remember(self, layers: Sequence[Layer]) -> None:
        self.layers.update((layer.chain_id, layer) for layer in layers)
        self.layers_by_id.update((layer.id, layer) for layer in layers)

    async def _change(self, write: Callable[[sqlite3.Connection], object], remember: Callable[[], object]) -> None:
        with anyio.CancelScope(shield=True):  # a commit takes milliseconds; leaving amid it would let memory and disk differ
            try:
                await self._database.write(write)
            except HostError:  # it may have happened all the same: what the disk says is what is
                self._behind = True
                await self._reload()
                raise
            remember()
            if self._meanwhile is not None:
                self._meanwhile.append(remember)
            if self._behind:
                await self._reload()

    async def _reload(self) -> None:
        """Read everything again. What others change meanwhile may be in what is read or not: it is remembered once more on top of it."""
        async with self._reloading:
            if not self._behind:  # who came first has read what this change left
                return
            self._behind, self._meanwhile = False, []
            try:
                found = await self._database.read(contents.read)
            except BridgeError as exc:
                self._behind = True
                _logger.error("the index can't be read again after a write that failed, and will be with the next change: %s", exc)
            else:
                self._hold(found)
                for remember in self._meanwhile:
                    remember()
            finally:
                self._meanwhile = None
