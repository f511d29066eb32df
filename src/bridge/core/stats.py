"""What containers and pods use: their cgroups' files, their namespaces' counters, and the measured size of their writable layers.

Nothing is forked and no runtime is asked, but by a backend whose containers have no cgroup of the host's. Lists answer from what the
sampler read last; a question that names a container or a pod has it read now. Sizes of layers come from memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bridge import log
from bridge.core import spec_resources
from bridge.core.containers import ContainerService
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.looks import Target
from bridge.core.pod_sums import PodSums
from bridge.core.sampler import Sample, Sampler
from bridge.core.sandboxes import SandboxService
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError, LimitExceeded
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.net_stats import NetworkStats
from bridge.host.process_counts import ProcessCounts
from bridge.ports.images import FsUsage, Images
from bridge.ports.runtime import ContainerHandle, SandboxHandle

_logger = log.get("core.stats")
_HALF = (ContainerState.CREATING, ContainerState.REMOVING)
_ALIVE = (ContainerState.RUNNING, SandboxState.READY)
_NOTHING = Sample()


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """``cgroup`` (of one without a cgroup: what its backend said) and ``nano_cores`` are None of one that does not run.

    ``layer`` is None of one whose layer was never measured, ``details`` and ``processes`` unless they were asked for and
    the files tell them.
    """

    container: Container
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    layer: FsUsage | None = None
    details: CgroupDetails | None = None
    processes: ProcessCounts | None = None

    @property
    def id(self) -> str:
        """The container's."""
        return self.container.id


@dataclass(frozen=True, slots=True)
class PodUsage:
    """``cgroup`` is the pod's own or, where it has none, what its containers use together.

    ``network`` is None in the host's network or once stopped. ``details`` and ``processes`` are of a pod whose containers live in a
    sandbox that the host accounts for as a whole, with the same conditions as a container's; None of others.
    """

    sandbox: Sandbox
    containers: tuple[ContainerUsage, ...] = ()
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    network: NetworkStats | None = None
    details: CgroupDetails | None = None
    processes: ProcessCounts | None = None

    @property
    def id(self) -> str:
        """The pod's."""
        return self.sandbox.id


class StatsService:
    """ContainerStats, PodSandboxStats and their lists. The daemon owns the sampler's loop."""

    def __init__(
        self,
        daemon: Surroundings,
        containers: ContainerService,
        sandboxes: SandboxService,
        images: Images,
        cgroup_driver: str,
    ) -> None:
        self._store, self._live = daemon.store, daemon.live
        self._containers = containers
        self._sandboxes = sandboxes
        self._images = images
        self._driver = cgroup_driver
        self._sums = PodSums()
        self.sampler = Sampler(self._all_targets, daemon.settings.sampler)
        daemon.supervisor.spawn("statistics", self.sampler.run)
        daemon.supervisor.spawn("statistics of what ended", self._forget_for_ever)

    async def _forget_for_ever(self) -> None:
        """Close the files of what ends when it ends: they name cgroups that are being removed."""
        while True:
            try:
                async with self._store.changes.subscribe() as changes:
                    async for change in changes:
                        if change.before is not None and (change.after is None or change.after.state not in _ALIVE):
                            await self.sampler.forget(change.before.id)
            except LimitExceeded:
                await self.sampler.forget_the_ended()

    async def container(self, ident: str) -> ContainerUsage:
        """Of one container, read now. Raises NotFound."""
        (found,) = await self._of([self._containers.find(ident)], fresh=True)
        return found

    async def containers(self, ident: str = "", sandbox_id: str = "", labels: Mapping[str, str] | None = None) -> list[ContainerUsage]:
        """Of every container that matches, oldest first; an unknown id gives an empty list. Read now if an id is given."""
        return await self._of(self._containers.list(ident, sandbox_id, None, labels), fresh=bool(ident or sandbox_id))

    async def sandbox(self, ident: str) -> PodUsage:
        """Of one pod and its containers, read now. Raises NotFound."""
        (found,) = await self._of_pods([self._sandboxes.find(ident)], fresh=True)
        return found

    async def sandboxes(self, ident: str = "", labels: Mapping[str, str] | None = None, *, detailed: bool = False) -> list[PodUsage]:
        """Of every pod that matches, oldest first, with ``details`` if ``detailed``. Read now if an id is given."""
        return await self._of_pods(self._sandboxes.list(ident, None, labels), fresh=bool(ident), detailed=detailed)

    async def _of(self, containers: Sequence[Container], *, fresh: bool) -> list[ContainerUsage]:
        samples = await self.sampler.samples(self._targets_of(containers), fresh=fresh)
        return [self._usage(container, samples.get(container.id, _NOTHING)) for container in containers]

    async def _of_pods(self, sandboxes: Sequence[Sandbox], *, fresh: bool, detailed: bool = False) -> list[PodUsage]:
        members = {sandbox.id: [one for one in self._store.members(sandbox.id) if one.state not in _HALF] for sandbox in sandboxes}
        targets = self._pod_targets(sandboxes) + self._targets_of([container for some in members.values() for container in some])
        samples = await self.sampler.samples(targets, fresh=fresh, detailed=detailed)
        self._sums.forget(self._store.sandboxes.__contains__)
        return [self._pod_usage(sandbox, members[sandbox.id], samples) for sandbox in sandboxes]

    def _all_targets(self) -> list[Target]:
        return self._pod_targets(self._store.sandboxes.values()) + self._targets_of(self._store.containers.values())

    def _targets_of(self, containers: Iterable[Container]) -> list[Target]:
        """Of those that run."""
        found = []
        for one in containers:
            entry = self._live.containers.get(one.id)
            if one.state is ContainerState.RUNNING and entry is not None:
                cgroup = _cgroup_of(one.id, entry.handle)
                found.append(Target(one.id, cgroup, entry.handle if cgroup is None else None, began_ns=one.started_at, pid=one.pid))
        return found

    def _pod_targets(self, sandboxes: Iterable[Sandbox]) -> list[Target]:
        """Of those that are ready. One that named no cgroup has none of its own, unless its sandbox has: it stands among others."""
        found = []
        for one in sandboxes:
            if one.state is SandboxState.READY:
                pin, whole = one.namespaces.get("net"), self._sandbox_cgroup(one.id)
                netns, pid = Path(pin) if pin else None, one.pid if whole else 0
                cgroup = whole or (spec_resources.pod_cgroup(self._driver, parent) if (parent := one.config.cgroup_parent) else None)
                found.append(Target(one.id, cgroup, netns=netns, pid=pid, detailed=whole is not None))
        return found

    def _sandbox_cgroup(self, ident: str) -> str | None:
        """Where the host accounts for all of a sandbox that its containers live in (bridge.ports.runtime.SandboxHandle)."""
        return _cgroup_of(ident, self._live.sandboxes.get(ident))

    def _usage(self, container: Container, sample: Sample) -> ContainerUsage:
        layer = self._images.layer_usage(container.id)
        return ContainerUsage(container, sample.cgroup, sample.nano_cores, layer, sample.details, sample.processes)

    def _pod_usage(self, sandbox: Sandbox, members: Sequence[Container], samples: Mapping[str, Sample]) -> PodUsage:
        usages = tuple(self._usage(container, samples.get(container.id, _NOTHING)) for container in members)
        own = samples.get(sandbox.id, _NOTHING)
        if sandbox.config.cgroup_parent or self._sandbox_cgroup(sandbox.id):
            # What the sandbox's own process may have open is no limit of the pod's.
            counts = own.processes and replace(own.processes, open_files_limit=None)
            return PodUsage(sandbox, usages, own.cgroup, own.nano_cores, own.network, own.details, counts)
        running = {one.id: samples.get(one.id, _NOTHING) for one in members if one.state is ContainerState.RUNNING}
        together = self._sums.of(sandbox.id, running)
        return PodUsage(sandbox, usages, together.cgroup, together.nano_cores, own.network)


def _cgroup_of(ident: str, handle: ContainerHandle | SandboxHandle | None) -> str | None:
    """A plugin that fails here costs its own pod's numbers."""
    try:
        cgroup: str | None = getattr(handle, "cgroup", None)
    except BridgeError as exc:
        _logger.warning("no statistics of %s: %s", ident[:13], exc)
        return None
    return cgroup
