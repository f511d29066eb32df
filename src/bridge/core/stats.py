"""What containers and pods use: their cgroups' files, their namespaces' counters, and the measured size of their writable layers.

Nothing is forked and no runtime is asked, but by a backend whose containers have no cgroup of the host's: that answers from what it
asked lately. One request reads all that it needs in one hop to a worker thread; sizes come from memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.core import spec_resources
from bridge.core.containers import ContainerService
from bridge.core.cpu_rates import CpuRates
from bridge.core.entities import Container, ContainerState, Sandbox
from bridge.core.sandboxes import SandboxService
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError
from bridge.host import cgroup_stats, net_stats
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.net_stats import NetworkStats
from bridge.ports.images import FsUsage, Images
from bridge.ports.runtime import ContainerHandle

_logger = log.get("core.stats")
_HALF = (ContainerState.CREATING, ContainerState.REMOVING)


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """``cgroup`` (of one without a cgroup: what its backend said) and ``nano_cores`` are None of one that does not run.

    ``layer`` is None of one whose layer was never measured.
    """

    container: Container
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    layer: FsUsage | None = None


@dataclass(frozen=True, slots=True)
class PodUsage:
    """``cgroup`` is the pod's own, None where it has none; ``network`` None in the host's network or once stopped."""

    sandbox: Sandbox
    containers: tuple[ContainerUsage, ...] = ()
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    network: NetworkStats | None = None


class StatsService:
    """ContainerStats, PodSandboxStats and their lists."""

    def __init__(
        self, daemon: Surroundings, containers: ContainerService, sandboxes: SandboxService, images: Images, cgroup_driver: str
    ) -> None:
        self._store, self._live = daemon.store, daemon.live
        self._containers = containers
        self._sandboxes = sandboxes
        self._images = images
        self._driver = cgroup_driver
        self._rates = CpuRates()

    async def container(self, ident: str) -> ContainerUsage:
        """Of one container. Raises NotFound."""
        (found,) = await self._of([self._containers.find(ident)])
        return found

    async def containers(self, ident: str = "", sandbox_id: str = "", labels: Mapping[str, str] | None = None) -> list[ContainerUsage]:
        """Of every container that matches, oldest first; an unknown id gives an empty list."""
        return await self._of(self._containers.list(ident, sandbox_id, None, labels))

    async def sandbox(self, ident: str) -> PodUsage:
        """Of one pod and its containers. Raises NotFound."""
        (found,) = await self._of_pods([self._sandboxes.find(ident)])
        return found

    async def sandboxes(self, ident: str = "", labels: Mapping[str, str] | None = None) -> list[PodUsage]:
        """Of every pod that matches, oldest first."""
        return await self._of_pods(self._sandboxes.list(ident, None, labels))

    async def _of(self, containers: Sequence[Container]) -> list[ContainerUsage]:
        looks = await self._looks(self._cgroups(containers), containers)
        return [self._usage(container, looks.get(container.id)) for container in containers]

    def _cgroups(self, containers: Iterable[Container]) -> dict[str, str]:
        """The cgroups of those that run."""
        found: dict[str, str] = {}
        for container in containers:
            entry = self._live.containers.get(container.id)
            if container.state is ContainerState.RUNNING and entry is not None and entry.handle.cgroup is not None:
                found[container.id] = entry.handle.cgroup
        return found

    async def _looks(self, cgroups: Mapping[str, str], containers: Iterable[Container]) -> Mapping[str, CgroupStats]:
        """What is known of ``cgroups``, and of those of ``containers`` that run without one."""
        entries = {one.id: self._live.containers.get(one.id) for one in containers if one.state is ContainerState.RUNNING}
        asked = {ident: entry.handle for ident, entry in entries.items() if entry is not None and entry.handle.cgroup is None}
        found = dict(await run_sync(_look, cgroups))
        async with anyio.create_task_group() as group:
            for ident, handle in asked.items():
                group.start_soon(_ask, ident, handle, found, name=f"ask for statistics of {ident}")
        return found

    def _usage(self, container: Container, look: CgroupStats | None) -> ContainerUsage:
        rate = None
        if look is not None and look.cpu_ns is not None:
            rate = self._rates.observe(container.id, look.at_ns, look.cpu_ns, began_ns=container.started_at)
        return ContainerUsage(container, look, rate, self._images.layer_usage(container.id))

    async def _of_pods(self, sandboxes: Sequence[Sandbox]) -> list[PodUsage]:
        members = [(sandbox, [one for one in self._store.members(sandbox.id) if one.state not in _HALF]) for sandbox in sandboxes]
        wanted = self._cgroups(container for _, containers in members for container in containers)
        wanted |= {sandbox.id: cgroup for sandbox in sandboxes if (cgroup := self._own_cgroup(sandbox))}
        looks = await self._looks(wanted, [container for _, containers in members for container in containers])
        networks = await net_stats.read({sandbox.id: Path(pin) for sandbox in sandboxes if (pin := sandbox.namespaces.get("net"))})
        self._rates.forget(lambda ident: ident in self._store.containers or ident in self._store.sandboxes)
        found = []
        for sandbox, containers in members:
            look = looks.get(sandbox.id)
            rate = None if look is None or look.cpu_ns is None else self._rates.observe(sandbox.id, look.at_ns, look.cpu_ns)
            usages = tuple(self._usage(container, looks.get(container.id)) for container in containers)
            found.append(PodUsage(sandbox, usages, look, rate, networks.get(sandbox.id)))
        return found

    def _own_cgroup(self, sandbox: Sandbox) -> str:
        """ "" for a pod that named no cgroup: it stands among others in the default one."""
        parent = sandbox.config.cgroup_parent
        return spec_resources.pod_cgroup(self._driver, parent) if parent else ""


async def _ask(ident: str, handle: ContainerHandle, found: dict[str, CgroupStats]) -> None:
    try:
        look = await handle.stats()
    except BridgeError as exc:
        _logger.warning("no statistics of %s: %s", ident[:13], exc)
        return
    if look is not None:
        found[ident] = look


def _look(cgroups: Mapping[str, str]) -> Mapping[str, CgroupStats]:
    found: dict[str, CgroupStats] = {}
    for ident, cgroup in cgroups.items():
        try:
            look = cgroup_stats.read(cgroup)
        except BridgeError as exc:
            _logger.warning("no statistics of %s: %s", ident[:13], exc)
            continue
        if look.cpu_ns is not None or look.memory is not None:  # else it ended meanwhile
            found[ident] = look
    return found
