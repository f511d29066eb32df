"""Taking away all that a container has but its log: the runtime's state, the root filesystem, the volumes, the bundle."""

from __future__ import annotations

import functools

import anyio

from bridge.aio import run_all
from bridge.core import trace
from bridge.core.container_create import erase_bundle, erase_rootfs
from bridge.core.entities import Container, ContainerState
from bridge.core.live import LiveContainer
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError
from bridge.ports.images import Images


class Remover:
    """Stateless; the caller owns the container and drops its record afterwards."""

    def __init__(self, daemon: Surroundings, images: Images) -> None:
        self._store, self._live, self._settings, self._leftovers = daemon.store, daemon.live, daemon.settings, daemon.leftovers
        self._images = images

    async def take_away(self, container: Container) -> None:
        """Idempotent. Raises BridgeError; the record is kept then, and the removal is tried again by itself (core/leftovers)."""
        try:
            await self._steps(container)
        except BridgeError as exc:
            await self._leftovers.keep(container.id, exc.message)
            raise

    async def _steps(self, container: Container) -> None:
        entry = self._live.containers.get(container.id)
        removing = functools.partial(self._store.apply_container, container.id, "removing")
        deleting = functools.partial(self._delete, entry)
        rootfs = functools.partial(erase_rootfs, self._settings, self._images, container)
        bundle = functools.partial(erase_bundle, self._settings, container)
        if container.state is ContainerState.EXITED and entry is not None and entry.freed:
            # Each step is independent by now, and until its end the record of an exited container owns what a crash would leave.
            await run_all((removing, deleting, rootfs, bundle))
            return
        for step in (removing, deleting, rootfs, bundle):
            await step()

    async def _delete(self, entry: LiveContainer | None) -> None:
        if entry is not None:
            with trace.span("backend delete"):
                await self.await_release(entry)
                await entry.handle.delete()

    async def await_release(self, entry: LiveContainer) -> None:
        """Until what it had of the runtime was freed after its exit, or was tried to be; the kill timeout at most."""
        if entry.exited.is_set():
            with anyio.move_on_after(self._settings.kill_timeout):
                await entry.released.wait()
