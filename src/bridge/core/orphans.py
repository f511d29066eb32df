"""What an earlier server made and no record owns: processes, cgroups, addresses, directories, mounts, root filesystems. All is removed.

Nothing like it is left by a crash, as each record is journaled before its effects; but a record may have become unreadable, or
the database and its copy may have been lost. Only what this server's own directories name is touched: other runtimes, and other
servers of this kind, have directories of their own. Each kind is listed first and compared with the records afterwards, so that
what is being made meanwhile is never taken for an orphan.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio.to_thread import run_sync

from bridge import log
from bridge.core import erase, remains
from bridge.core.detach import Detacher, to_record
from bridge.core.settings import CoreSettings
from bridge.core.spec_inputs import SpecSettings
from bridge.core.store import Store
from bridge.errors import BridgeError, HostError
from bridge.host import cgroup_kill, cgroups, files, namespaces, trial_cgroups
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images
from bridge.ports.network import Network, PodNetworkRequest

_logger = log.get("core.orphans")
_SHORT = 32
"""Digits of a container's id in the name of its terminal's socket."""


@dataclass(slots=True)
class Tally:
    """How many were removed since the server's start."""

    removed: int = 0


@dataclass(frozen=True, slots=True)
class Orphans:
    """Run ``remove`` after recovery, or whenever asked. Nothing that fails here is fatal: it is logged and tried at the next start."""

    store: Store
    handlers: Handlers
    images: Images
    network: Network
    detacher: Detacher
    settings: CoreSettings
    spec_settings: SpecSettings
    tally: Tally = field(default_factory=Tally)

    async def remove(self) -> Sequence[str]:
        """Processes first, then what they had mounted, then what they had written. Returns in words what was removed."""
        removed = []
        for state in self.handlers.states():
            if state.features is not None:
                removed += await self._processes(state.name)
        for name in await run_sync(_names, self.settings.run_dir / "sandboxes"):
            if name not in self.store.sandboxes:
                removed += await self._tried(f"the directory of pod {name}", lambda: self._directory(name))  # noqa: B023
        for path in await run_sync(self._loose):
            removed += await self._tried(str(path), lambda: _remove(path))  # noqa: B023
        for container in self.images.containers():
            if container not in self.store.containers:
                removed += await self._tried(f"the root filesystem of container {container}", lambda: self._rootfs(container))  # noqa: B023
        await _abandoned_trials()
        self.tally.removed += len(removed)
        return removed

    def _loose(self) -> list[Path]:
        """Sockets of terminals, and what runtimes keep for handlers that are configured no more, with ids that nobody has. Blocks."""
        run, configured = self.settings.run_dir, {state.name for state in self.handlers.states()}
        found = [run / "tty" / name for name in _names(run / "tty")]
        for handler in _names(run / "runtimes"):
            if handler not in configured:
                found += [run / "runtimes" / handler / name for name in _names(run / "runtimes" / handler) if remains.is_id(name)]
        known = {ident[:_SHORT] for ident in (*self.store.sandboxes, *self.store.containers)}
        return [path for path in found if path.name[:_SHORT] not in known]

    def _known(self, ident: str) -> bool:
        return ident in self.store.sandboxes or ident in self.store.containers

    async def _processes(self, handler: str) -> list[str]:
        try:
            found = await self.handlers.backend(handler).remove_strangers(self._known)
        except BridgeError as exc:
            _logger.error("what no record owns can't be removed from handler %s: %s", handler, exc)
            return []
        for ident in found:
            _logger.warning("removed %s from handler %s: no record owns it", ident, handler)
        return [f"{ident} from handler {handler}" for ident in found]

    async def _tried(self, what: str, work: Callable[[], Awaitable[None]]) -> list[str]:
        try:
            await work()
        except BridgeError as exc:
            _logger.error("%s, which no record owns, can't be removed: %s", what, exc)
            return []
        _logger.warning("removed %s: no record owns it", what)
        return [what]

    async def _directory(self, sandbox: str) -> None:
        directory = self.settings.sandbox_dir(sandbox)
        await run_sync(_end_cgroups, await run_sync(remains.cgroups, directory, self.spec_settings))
        await self._network(sandbox, directory)
        await namespaces.remove(directory / "ns")
        await erase.directory(directory)

    async def _network(self, sandbox: str, directory: Path) -> None:
        """CNI DEL by the network of today, as nothing tells of the one that the pod was attached to; it knows the pod by its id."""
        pin = await run_sync(remains.netns, directory)
        if pin is None or not remains.is_id(sandbox):
            return
        try:
            attachment = self.network.plan(PodNetworkRequest(sandbox_id=sandbox, name="", namespace="", uid="", netns=pin))
        except BridgeError as exc:
            _logger.warning("the addresses of pod %s, which no record owns, may be lost: %s", sandbox, exc)
            return
        await self.detacher.detach(sandbox, to_record(attachment))

    async def _rootfs(self, container: str) -> None:
        await self.images.remove_rootfs(container, self.settings.bundle("orphans", container) / "rootfs")


async def _remove(path: Path) -> None:
    if await run_sync(path.is_dir):
        await files.remove_tree(path)
        return
    try:
        await run_sync(lambda: path.unlink(missing_ok=True))
    except OSError as exc:
        raise HostError(f"can't remove {path}: {exc.strerror}", errno=exc.errno) from exc


async def _abandoned_trials() -> None:
    """Not counted among what was ours: the trials may have been those of any server here, mostly private ones that were killed."""
    try:
        for name in await run_sync(trial_cgroups.abandoned):
            await run_sync(trial_cgroups.remove, name)
            _logger.info("removed cgroup %s: its trial was broken off long ago", name)
    except BridgeError as exc:
        _logger.warning("the cgroups of trials that were broken off can't be removed: %s", exc)


def _end_cgroups(found: Sequence[str]) -> None:
    """End everyone in these cgroups and remove them, in every hierarchy; absent is success."""
    for cgroup in found:
        for directory in cgroups.layout().directories(cgroup):
            cgroup_kill.kill_all(directory)
        cgroups.remove(cgroup)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
