"""The image store: implements the port ``bridge.ports.images.Images`` and ties its parts together.

Readers are answered from memory. What must outlive a request (pulls, deletions, measurements) runs under the supervisor that the
daemon passes in. Format and reasons: docs/adr/0003-image-store.md.
"""

from __future__ import annotations

import fnmatch
import importlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio.to_thread

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import ImagePullFailed, InUse, RegistryUnavailable, SignatureValidationFailed
from bridge.host.database import Database
from bridge.images import index_file, naming, ownership, reference
from bridge.images.administration import Administration
from bridge.images.assemble import Assembler
from bridge.images.catalogue import Catalogue
from bridge.images.check import Checker, CheckProgress, Repair, Report
from bridge.images.checkpoint import CheckpointFiles
from bridge.images.disk import Directories
from bridge.images.gate import Gate
from bridge.images.importing import Importer
from bridge.images.kept_signatures import KeptSignatures
from bridge.images.layers import LayerStore
from bridge.images.progress import PullProgress, Tracer, Watcher
from bridge.images.recovery import recover
from bridge.images.rows import Record
from bridge.images.settings import ImageSettings
from bridge.images.short_names import ShortNames
from bridge.images.snapshots import Snapshots
from bridge.images.unpack import Unpacker
from bridge.images.volumes import Volumes
from bridge.ports.images import FsUsage, Image, RegistryAuth, Rootfs

if TYPE_CHECKING:
    from bridge.images.pull import Puller
    from bridge.images.registry import RegistryClient

_logger = log.get("images")
_CLOSE_SECONDS = 10.0


class ImageStore:
    """See ``bridge.ports.images.Images`` for the port's methods. Made by ``ImageStore.open``."""

    def __init__(self, settings: ImageSettings, supervisor: Supervisor, database: Database, directories: Directories) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._directories = directories
        self._catalogue = Catalogue(database)
        self._layers = LayerStore(directories, self._catalogue, supervisor, parallel=settings.parallel, keep_seconds=settings.linger)
        unpacker = Unpacker(settings.limits)
        self._assembler = Assembler(self._catalogue, self._layers, unpacker)
        self.checkpoints = CheckpointFiles(directories, self._catalogue, unpacker)
        self._client: RegistryClient | None = None
        self._puller: Puller | None = None
        self._opening = anyio.Lock()
        self.id_mapping_fault = ""
        self.snapshots = Snapshots(directories, self._catalogue, self._layers)
        self._volumes = Volumes(directories, self._catalogue)
        self._short_names = ShortNames(settings.registries_conf)
        self._gate = Gate(settings, KeptSignatures(settings.root / "signatures", self._catalogue.images))
        self.checker = Checker(database, self._catalogue, directories, self._layers, self._refetch)
        self.administration = Administration(self, self._catalogue, directories, self._layers)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ImageSettings, supervisor: Supervisor) -> AsyncIterator[Self]:
        """Open the store below ``settings.root``, mend what a crash left, and measure writable layers while the block runs.

        A damaged index is set aside and the store starts empty; what running containers stand on stays until the next boot.
        Raises HostError, ConfigError (written by a newer version).
        """
        directories = Directories(settings.root)
        await directories.prepare()
        database = await index_file.open_index(settings.root)
        async with database:
            store = cls(settings, supervisor, database, directories)
            await recover(settings.root, store._catalogue, directories, store._layers)
            await store.gc()
            store.id_mapping_fault = await ownership.fault(directories)
            await store._short_names.load()
            supervisor.spawn("images: measure", lambda: store.snapshots.measure_for_ever(settings.measure_seconds))
            if settings.verify_days:
                supervisor.spawn("images: verify", lambda: store.checker.verify_for_ever(settings.verify_days, settings.verify_rate))
            try:
                yield store
            finally:
                await store._close()

    async def _close(self) -> None:
        """End what is in the air before its connections and its database go."""
        with anyio.CancelScope(shield=True):
            if self._puller is not None:
                await self._puller.stop(_CLOSE_SECONDS)
            await self._layers.stop(_CLOSE_SECONDS)
            if self._client is not None:
                await self._client.close()

    # The port

    def list(self) -> Sequence[Image]:
        """All images, by id. Not those with a layer that is known to be damaged: they are to be pulled again."""
        return [self.image(record) for _, record in sorted(self._catalogue.images.items()) if self._catalogue.is_whole(record)]

    def find(self, text: str) -> Image | None:
        """See the port."""
        found = self.meant(text)
        return self.image(found[0]) if found is not None and self._catalogue.is_whole(found[0]) else None

    async def pull(self, text: str, auth: RegistryAuth | None = None, namespace: str = "") -> Image:
        """See the port."""
        puller = await self._open_puller()
        names = await self._short_names.candidates(text)
        for name in names[:-1]:
            try:
                return self.image(await puller.pull(reference.parse(name), auth, namespace))
            except (ImagePullFailed, RegistryUnavailable, SignatureValidationFailed) as exc:
                _logger.info("%s is not to be had as %s: %s", text, name, exc)
        return self.image(await puller.pull(reference.parse(names[-1]), auth, namespace))

    async def admit(self, image_id: str, name: str, namespace: str) -> None:
        """See the port."""
        found = self.meant(name)
        called = found[1] if found else self._short_names.meanings(name)[0]
        await self._gate.readmit(reference.parse(called).canonical() if called else None, image_id, namespace)

    async def remove(self, text: str) -> None:
        """See the port. Removing the last name of an image removes it; by id, all its names go."""
        found = self.meant(text)
        if found is None:
            return
        record, name = found
        names = naming.going(record, name) if name is not None else None
        users = self._catalogue.users(record.id)
        if users and (names is None or not record.names - names):
            raise InUse(f"image {record.id} is used by container{'s' if len(users) > 1 else ''} {', '.join(users)}")
        try:
            dropped = await self._catalogue.drop_image(record.id, names)
        except InUse as exc:
            raise InUse(f"image {record.id} is used by a container that was created just now") from exc
        if dropped:
            await self.gc()

    def image_usage(self) -> FsUsage:
        """What the layers take."""
        layers = self._catalogue.layers.values()
        size, inodes = sum(layer.disk_bytes for layer in layers), sum(layer.inodes for layer in layers)
        return FsUsage(self._directories.layers, size, inodes, time.time_ns())

    def container_usage(self) -> FsUsage:
        """What the writable layers took when last measured."""
        return self.snapshots.total()

    def layer_usage(self, container_id: str) -> FsUsage | None:
        """See the port."""
        return self.snapshots.usage(container_id)

    async def mount_rootfs(
        self, container_id: str, image_id: str, target: Path, *, label: str = "", user_namespace: Path | None = None
    ) -> Rootfs:
        """See the port."""
        return await self.snapshots.mount(container_id, image_id, target, label=label, user_namespace=user_namespace)

    async def remove_rootfs(self, container_id: str, target: Path) -> None:
        """See the port."""
        await self.snapshots.remove(container_id, target)
        await self._volumes.release(container_id)

    async def mount_volume(
        self, container_id: str, image_id: str, target: Path, sub_path: str = "", *, label: str = "", user_namespace: Path | None = None
    ) -> None:
        """See the port."""
        await self._volumes.mount(container_id, image_id, target, sub_path, label=label, user_namespace=user_namespace)

    async def remount_rootfs(self, container_id: str, target: Path) -> Rootfs:
        """See the port."""
        return await self.snapshots.remount(container_id, target)

    # Beyond the port: for the command line and the daemon

    async def config_document(self, image_id: str) -> bytes:
        """See the port."""
        found = await self._catalogue.blobs([image_id])
        return found[image_id].data if image_id in found else b""

    async def import_archive(self, path: Path, name: str | None = None) -> Sequence[Image]:
        """Import an OCI layout or docker archive; ``name`` is for an archive with one image. Its progress is that of pulls.

        Raises InvalidRequest, CorruptData, Unsupported, LimitExceeded, HostError.
        """
        scratch = self._directories.scratch()
        try:
            records = await Importer(self._settings, self._assembler).run(path, scratch, name)
        finally:
            self._layers.bury([scratch])
        return [self.image(self._catalogue.images.get(record.id, record)) for record in records]

    async def check(self, full: bool, progress: CheckProgress | None = None) -> Report:
        """See ``Checker.check``."""
        return await self.checker.check(full, progress or CheckProgress())

    async def repair(self) -> Sequence[Repair]:
        """See ``Checker.repair``."""
        return await self.checker.repair()

    async def _refetch(self, record: Record, repository: str, digest: str) -> None:
        await (await self._open_puller()).refetch(record, repository, digest)

    async def gc(self) -> int:
        """Drop layers that nothing stands on; how many. Runs at start and after each removal."""
        dropped = await self._layers.drop_unused()
        if dropped:
            _logger.info("dropped %d unused layers", dropped)
        return dropped

    def progress(self) -> Sequence[PullProgress]:
        """How far the running pulls and imports are."""
        return self._assembler.board.show()

    def watch_pulls(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of pulls and imports as they end."""
        self._assembler.board.watcher = watcher

    def trace_pulls(self, tracer: Tracer | None) -> None:
        """Tell ``tracer`` of pulls and imports, and of their steps; None: nobody any more."""
        self._assembler.board.tracer = tracer

    def containers(self) -> Sequence[str]:
        """The containers that have a writable layer or a volume: for the daemon to remove those it does not know."""
        return sorted({*self._catalogue.snapshots, *self._catalogue.holds})

    def meanings(self, text: str) -> Sequence[str]:
        """The full names that ``text`` may stand for."""
        return self._short_names.meanings(text)

    def meant(self, text: str) -> tuple[Record, str | None] | None:
        """The image that ``text`` means, and the name it was called by (None: by id). Raises InvalidRequest."""
        return naming.meant(text, self._short_names, self._catalogue)

    def image(self, record: Record) -> Image:
        tags = sorted(name for name in record.names if "@" not in name)
        return Image(
            id=record.id,
            repo_tags=tags,
            repo_digests=sorted(f"{repository}@{digest}" for repository, digest in record.digests),
            size=sum(layer.disk_bytes for layer in record.layers),
            pinned=self._pinned(record),
            config=record.config,
            chain_ids=[layer.chain_id for layer in record.layers],
            artifact_type=record.artifact_type,
        )

    def _pinned(self, record: Record) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in self._settings.pinned for name in (*record.names, record.id))

    async def _open_puller(self) -> Puller:
        """The HTTP client is loaded at the first pull: it is the heaviest import of the server."""
        async with self._opening:
            if self._puller is None:
                registry = await anyio.to_thread.run_sync(importlib.import_module, "bridge.images.registry")
                pulling = await anyio.to_thread.run_sync(importlib.import_module, "bridge.images.pull")
                self._client = registry.RegistryClient(self._settings)
                parts = (self._catalogue, self._assembler, self._supervisor, self._gate)
                self._puller = pulling.Puller(self._settings, self._client, *parts)
            assert self._puller is not None
            return self._puller
