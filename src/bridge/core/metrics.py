"""ListMetricDescriptors and ListPodSandboxMetrics: what of the metrics' tables is chosen, and its values for what runs now.

Values are those of the sampler's last look. Told is of pods that are ready and of containers that were seen running. A sandbox that the
host accounts for as a whole (gVisor's) has a kernel of its own, which tells little of each container: what the host's kernel says of
all of it is told of the pod, as cAdvisor does of a pod's cgroup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.core.entities import SandboxState
from bridge.core.metric_groups import Group
from bridge.core.metrics_surroundings import NETWORK, SURROUNDINGS
from bridge.core.metrics_table import BASE_LABELS, Described, Seen, Value
from bridge.core.metrics_usage import USAGE
from bridge.core.stats import ContainerUsage, PodUsage, StatsService
from bridge.host import filesystems
from bridge.host.filesystems import Filesystems, Numbers
from bridge.host.net_stats import NetworkStats

__all__ = ["BASE_LABELS", "ContainerMetrics", "MetricsService", "PodMetrics"]

_OF_CONTAINERS = (Group.DISK, Group.SPEC)
"""What a sandbox as a whole has none of."""
Values = Sequence[tuple[Described, Value]]


@dataclass(frozen=True, slots=True)
class ContainerMetrics:
    """``labels`` are the values of ``BASE_LABELS``, which each metric's own follow."""

    id: str
    labels: tuple[str, ...]
    values: Values


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """A pod's own, which are those of its network and of its sandbox as a whole, and its containers'."""

    id: str
    labels: tuple[str, ...]
    values: Values
    containers: Sequence[ContainerMetrics]


class MetricsService:
    """``groups`` are told, besides what always is."""

    def __init__(self, stats: StatsService, groups: Collection[Group]) -> None:
        self._stats = stats
        chosen = {Group.ALWAYS, *groups}
        self._rows = [row for row in (*USAGE, *SURROUNDINGS) if row.group in chosen]
        self._whole = [row for row in self._rows if row.group not in _OF_CONTAINERS]
        self._network = [row for row in NETWORK if row.group in chosen]
        self._disks = bool({Group.DISK, Group.DISK_IO} & chosen)

    @property
    def descriptors(self) -> Sequence[Described]:
        """Everything that may be told; the same for as long as the server runs, since a kubelet asks once."""
        return (*self._rows, *self._network)

    async def pods(self) -> Iterator[PodMetrics]:
        """Of every pod that is ready, oldest first; each is worked out when it is asked for."""
        usages = [each for each in await self._stats.sandboxes(detailed=True) if each.sandbox.state is SandboxState.READY]
        around = await run_sync(filesystems.look, *_wanted(usages)) if self._disks else Filesystems()
        return (self._pod(usage, around) for usage in usages)

    def _pod(self, usage: PodUsage, around: Filesystems) -> PodMetrics:
        meta = usage.sandbox.config.metadata
        values = [] if usage.network is None else self._of_network(usage.network)
        if usage.details is not None and usage.cgroup is not None:
            whole = Seen(usage.cgroup, usage.details, usage.processes, names=around.names)
            values += [(row, value) for row in self._whole for value in row.read(whole)]
        containers = [self._container(one, seen, usage) for one in usage.containers if (seen := _seen(one, around)) is not None]
        return PodMetrics(usage.id, (meta.name, meta.namespace, "", usage.id, ""), values, containers)

    def _of_network(self, network: NetworkStats) -> list[tuple[Described, Value]]:
        return [(row, Value((each.name,), row.read(each), network.at_ns)) for each in network.interfaces for row in self._network]

    def _container(self, one: ContainerUsage, seen: Seen, usage: PodUsage) -> ContainerMetrics:
        meta, config = usage.sandbox.config.metadata, one.container.config
        image = config.image.user_specified_image or config.image.image
        labels = (meta.name, meta.namespace, config.metadata.name, one.id, image)
        return ContainerMetrics(one.id, labels, [(row, value) for row in self._rows for value in row.read(seen)])


def _seen(usage: ContainerUsage, around: Filesystems) -> Seen | None:
    if usage.cgroup is None:
        return None
    container, layer = usage.container, usage.layer
    room = None if layer is None else around.rooms.get(layer.mountpoint)
    limits = container.resources or container.config.resources
    return Seen(usage.cgroup, usage.details, usage.processes, layer, room, around.names, limits, container.started_at)


def _wanted(usages: Sequence[PodUsage]) -> tuple[set[Path], set[Numbers]]:
    """The paths and the devices to look at."""
    containers = [each for usage in usages for each in usage.containers]
    details = [each.details for each in containers] + [usage.details for usage in usages]
    devices = {(io.major, io.minor) for each in details if each is not None for io in each.io}
    return {each.layer.mountpoint for each in containers if each.layer is not None}, devices
