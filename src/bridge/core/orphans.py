"""What an earlier server made and no record owns: processes, directories, mounts, root filesystems. All of it is removed.

Nothing like it is left by a crash, as each record is journaled before its effects; but a record may have become unreadable, or
the database may have been lost. Each kind is listed first and compared with the records afterwards, so that what is being made
meanwhile is never taken for an orphan.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync

from bridge import log
from bridge.core import erase
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.errors import BridgeError
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images

_logger = log.get("core.orphans")


@dataclass(frozen=True, slots=True)
class Orphans:
    """Run ``remove`` once, after recovery. Nothing that fails here is fatal: it is logged and tried at the next start."""

    store: Store
    handlers: Handlers
    images: Images
    settings: CoreSettings

    async def remove(self) -> None:
        """Processes first, then what they had mounted, then what they had written."""
        for state in self.handlers.states():
            if state.features is not None:
                await self._processes(state.name)
        for name in await run_sync(_names, self.settings.run_dir / "sandboxes"):
            if name not in self.store.sandboxes:
                await self._directory(name)
        for container in self.images.containers():
            if container not in self.store.containers:
                await self._rootfs(container)

    def _known(self, ident: str) -> bool:
        return ident in self.store.sandboxes or ident in self.store.containers

    async def _processes(self, handler: str) -> None:
        try:
            for ident in await self.handlers.backend(handler).remove_strangers(self._known):
                _logger.warning("removed %s from handler %s: no record owns it", ident, handler)
        except BridgeError as exc:
            _logger.error("what no record owns can't be removed from handler %s: %s", handler, exc)

    async def _directory(self, sandbox: str) -> None:
        try:
            await erase.directory(self.settings.sandbox_dir(sandbox))
            _logger.warning("removed the directory of pod %s: no record owns it", sandbox)
        except BridgeError as exc:
            _logger.error("the directory of pod %s, which no record owns, can't be removed: %s", sandbox, exc)

    async def _rootfs(self, container: str) -> None:
        try:
            await self.images.remove_rootfs(container, self.settings.bundle("orphans", container) / "rootfs")
            _logger.warning("removed the root filesystem of container %s: no record owns it", container)
        except BridgeError as exc:
            _logger.error("the root filesystem of container %s, which no record owns, can't be removed: %s", container, exc)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
