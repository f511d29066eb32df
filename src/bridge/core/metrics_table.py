"""What a row of the metrics' tables is: one metric's name, type, labels and help, and how it is read from what was sampled.

The rows are the only source of both ListMetricDescriptors and ListPodSandboxMetrics, so that nothing is told that is not described.
Names, types and labels are those of cAdvisor, as a kubelet's dashboards know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from bridge.core.metric_groups import Group
from bridge.core.model import Resources
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.filesystems import Numbers, Room
from bridge.host.net_stats import Interface
from bridge.host.process_counts import ProcessCounts
from bridge.ports.images import FsUsage

BASE_LABELS = ("pod", "namespace", "container", "id", "image")
"""In front of every metric's own; ``container`` and ``image`` are empty, and ``id`` is the pod's, in what is told of a pod."""


class Kind(Enum):
    """Whether a value only grows."""

    COUNTER = 0
    GAUGE = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a container that runs, or of a pod's sandbox; ``names`` are of block devices, ``details`` None if not read.

    Of a sandbox there is no layer, no limits and no start.
    """

    look: CgroupStats
    details: CgroupDetails | None = None
    processes: ProcessCounts | None = None
    layer: FsUsage | None = None
    room: Room | None = None
    names: Mapping[Numbers, str] = field(default_factory=dict)
    resources: Resources | None = None
    started_ns: int | None = None


class Value(NamedTuple):
    """One series of a metric: the values of its own labels, its value, and when that was true (Unix time in ns)."""

    labels: tuple[str, ...]
    value: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Described:
    """What ListMetricDescriptors tells. ``labels`` follow ``BASE_LABELS``."""

    group: Group
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerMetric(Described):
    """``read`` gives no value where nothing is known."""

    read: Callable[[Seen], Iterable[Value]] = lambda _: ()


@dataclass(frozen=True, slots=True)
class PodMetric(Described):
    """Read once for each interface."""

    read: Callable[[Interface], int] = lambda _: 0


def row(
    group: Group, kind: Kind, name: str, text: str, read: Callable[[Seen], Iterable[Value]], labels: tuple[str, ...] = ()
) -> ContainerMetric:
    """One line of a table; ``name`` without the prefix that all have."""
    return ContainerMetric(group, f"container_{name}", kind, text, labels, read)


def single(read: Callable[[Seen], int | None]) -> Callable[[Seen], Iterable[Value]]:
    """Of a number, or None, that the container's sample has."""

    def values(seen: Seen) -> Iterable[Value]:
        number = read(seen)
        return () if number is None else (Value((), number, seen.look.at_ns),)

    return values


def seconds(nanoseconds: int | None) -> int | None:
    """Whole ones: a metric of the CRI has no fraction."""
    return None if nanoseconds is None else nanoseconds // 1_000_000_000
