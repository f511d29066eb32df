"""Which network the node uses: looks at the configuration and plugin directories, and keeps looking as they change.

The files are taken in the order of their names and the first valid one is the network, as every CRI runtime does it. A plugin
that is missing doesn't make us fall back to another network: a node that quietly changes networks is worse than one
that says what it waits for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import anyio
import anyio.to_thread

from bridge import log
from bridge.errors import ConfigError, NetworkFailed
from bridge.host.inotify import DirectoryWatch
from bridge.network.conf import SUFFIXES, NetworkConf, parse_network, parse_plugin
from bridge.network.invoke import Invoker

_FILE_LIMIT = 1 << 20
_SETTLE = 0.1  # seconds from the first change to looking: an installer writes several files
_POLL = 5.0  # seconds between looks where inotify can't be had
_RESCAN = 60.0  # and where it can: file systems that bypass the kernel send no events
_PROBE_TIMEOUT = 10.0
_logger = log.get("network")


@dataclass(frozen=True, slots=True)
class Binary:
    """An installed plugin; ``stamp`` (mtime, ns) changes when it is replaced."""

    path: Path
    stamp: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was found: the network or none, the plugins installed by name, and every problem in words.

    ``fault`` is the one that keeps the network from being used; ``skipped`` are files passed over, the network being another.
    """

    network: NetworkConf | None = None
    binaries: Mapping[str, Binary] = field(default_factory=lambda: MappingProxyType({}))
    fault: str = ""
    skipped: Sequence[str] = ()


def scan(conf_dir: Path, bin_dirs: Sequence[Path]) -> Snapshot:
    """Look at the directories once. Blocks: for a worker thread. Never raises for what it finds there: see ``fault``."""
    network: NetworkConf | None = None
    skipped: list[str] = []
    try:
        with os.scandir(conf_dir) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIXES) and not entry.is_dir())
    except FileNotFoundError:
        names = []
    except OSError as exc:
        names, skipped = [], [f"{conf_dir}: {exc.strerror}"]
    for name in names:
        try:
            network = _load(conf_dir, name)
            break
        except ConfigError as exc:
            skipped.append(str(exc))
    binaries = _binaries(bin_dirs)
    if network is None:
        fault = f"no CNI configuration in {conf_dir} (looked for {', '.join('*' + suffix for suffix in SUFFIXES)})"
        return Snapshot(None, binaries, "; ".join([fault, *skipped]), tuple(skipped))
    missing = list(dict.fromkeys(plugin.type for plugin in network.plugins if plugin.type not in binaries))
    fault = ""
    if missing:
        places = ", ".join(str(path) for path in bin_dirs)
        fault = f"network {network.name!r} of {network.source} needs CNI plugins that are not in {places}: {', '.join(missing)}"
    return Snapshot(network, binaries, fault, tuple(skipped))


def _load(conf_dir: Path, name: str) -> NetworkConf:
    network = parse_network(_read(conf_dir / name), name)
    if not network.inlined_only:
        beside = conf_dir / network.name
        try:
            files = sorted(entry for entry in os.listdir(beside) if entry.endswith(".conf"))
        except (FileNotFoundError, NotADirectoryError):
            files = []
        network = network.with_plugins([parse_plugin(_read(beside / file), f"{network.name}/{file}") for file in files])
    if not network.plugins:
        raise ConfigError(f"{name}: plugins is missing, and {conf_dir / network.name} has none either")
    return network


def _read(path: Path) -> bytes:
    """A regular file's content; O_NONBLOCK so that a fifo of that name can't stop us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path.name}: is not a regular file")
            data = file.read(_FILE_LIMIT + 1)
    except OSError as exc:
        raise ConfigError(f"{path.name}: {exc.strerror}") from exc
    if len(data) > _FILE_LIMIT:
        raise ConfigError(f"{path.name}: is larger than {_FILE_LIMIT} bytes")
    return data


def _binaries(bin_dirs: Sequence[Path]) -> Mapping[str, Binary]:
    found: dict[str, Binary] = {}
    for directory in bin_dirs:
        try:
            names = os.listdir(directory)
        except OSError as exc:
            _logger.debug("plugin directory %s: %s", directory, exc.strerror)
            continue
        for name in names:
            path = directory / name
            if name not in found and path.is_file() and os.access(path, os.X_OK):
                found[name] = Binary(path, path.stat().st_mtime_ns)
    return found


class NetworkSource:
    """Keeps ``snapshot`` true. ``refresh`` once at the start, then run ``watch`` as a task."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path], invoker: Invoker) -> None:
        self._conf_dir = conf_dir
        self._bin_dirs = tuple(bin_dirs)
        self._invoker = invoker
        self._spoken: dict[Binary, Sequence[str]] = {}
        self._seen = Snapshot()
        self.snapshot = Snapshot()
        self.changed = anyio.Event()
        """Set, and replaced by a new one, whenever ``snapshot`` changed."""

    async def refresh(self) -> None:
        """Look now, and ask the plugins of a network that is new to us for their versions."""
        seen = await anyio.to_thread.run_sync(scan, self._conf_dir, self._bin_dirs)
        if seen == self._seen:
            return
        for problem in seen.skipped:
            if problem not in self._seen.skipped:
                _logger.warning("CNI configuration skipped: %s", problem)
        snapshot = await self._negotiate(seen)
        self._seen, self.snapshot = seen, snapshot
        if snapshot.fault:
            _logger.warning("the pod network is not ready: %s", snapshot.fault)
        elif snapshot.network is not None:
            network = snapshot.network
            kinds = ", ".join(plugin.type for plugin in network.plugins)
            _logger.info("pod network %s from %s: CNI %s, plugins %s", network.name, network.source, network.version, kinds)
        self.changed.set()
        self.changed = anyio.Event()

    async def watch(self) -> None:
        """Refresh after every change, until cancelled."""
        try:
            watch = DirectoryWatch()
        except OSError as exc:
            _logger.warning("no inotify (%s): looking at %s every %g s", exc, self._conf_dir, _POLL)
            await self._poll()
        with watch:
            while True:
                watch.drain()
                try:
                    await anyio.to_thread.run_sync(watch.watch, self._directories())
                except OSError as exc:
                    _logger.warning("no inotify watch (%s): looking at %s every %g s", exc, self._conf_dir, _POLL)
                    await self._poll()
                await self.refresh()
                with anyio.move_on_after(_RESCAN):
                    await watch.wait_change()
                    await anyio.sleep(_SETTLE)

    async def _poll(self) -> None:
        while True:
            await self.refresh()
            await anyio.sleep(_POLL)

    def _directories(self) -> Sequence[Path]:
        network = self._seen.network
        beside = [self._conf_dir / network.name] if network is not None and not network.inlined_only else []
        return [self._conf_dir, *beside, *self._bin_dirs]

    async def _negotiate(self, seen: Snapshot) -> Snapshot:
        """Restrict the network to versions that its plugins speak; a plugin that can't say is taken to speak them all."""
        if seen.network is None or seen.fault:
            return seen
        network = seen.network
        spoken: dict[str, Sequence[str] | None] = {}
        async with anyio.create_task_group() as group:
            for kind in {plugin.type for plugin in network.plugins}:

                async def ask(kind: str = kind) -> None:
                    spoken[kind] = await self._versions(kind, seen.binaries[kind], network.name)

                group.start_soon(ask)
        common = tuple(v for v in network.versions if all(versions is None or v in versions for versions in spoken.values()))
        if common:
            return Snapshot(network.with_versions(common), seen.binaries, "", seen.skipped)
        words = "; ".join(f"{kind} speaks {', '.join(versions or ())}" for kind, versions in spoken.items() if versions is not None)
        wanted = f"network {network.name!r} of {network.source} is of CNI {', '.join(network.versions)}"
        return Snapshot(network, seen.binaries, f"{wanted}, which its plugins don't all speak: {words}", seen.skipped)

    async def _versions(self, kind: str, binary: Binary, network: str) -> Sequence[str] | None:
        try:
            if binary not in self._spoken:
                self._spoken[binary] = await self._invoker.versions(kind, binary.path, network=network, timeout=_PROBE_TIMEOUT)
            return self._spoken[binary]
        except NetworkFailed as exc:
            _logger.warning("can't ask CNI plugin %s for its versions: %s", kind, exc)
            return None
