"""One look of the sampler: the files of some targets, one after the other, in a thread of its own. Blocking.

The thread may be left alone when the kernel holds it. What it has read until then counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge import log
from bridge.errors import BridgeError
from bridge.host import net_stats, process_counts
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_reader import CgroupReader
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.net_stats import NetworkStats
from bridge.host.process_counts import ProcessCounts
from bridge.ports.runtime import ContainerHandle

_logger = log.get("core.sampler")


@dataclass(frozen=True, slots=True)
class Target:
    """A container that runs, or a pod. ``backend`` is asked where there is no ``cgroup``; ``began_ns`` is when it started, 0 unknown.

    ``pid`` is its first process, 0 of what has none to be counted here. Details of its cgroup are read only if it is ``detailed``: nobody
    wants those of a pod whose containers have their own.
    """

    ident: str
    cgroup: str | None = None
    backend: ContainerHandle | None = None
    netns: Path | None = None
    began_ns: int = 0
    pid: int = 0
    detailed: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """What the files say of one target; None is what they don't."""

    cgroup: CgroupStats | None = None
    details: CgroupDetails | None = None
    processes: ProcessCounts | None = None
    network: NetworkStats | None = None


class Look:
    """``run`` is the thread's, and so is ``reader`` until it is ``over``; the rest is for who waits for it."""

    def __init__(self, targets: Sequence[Target], reader: CgroupReader, *, detailed: bool, keep_open: bool, count_processes: bool) -> None:
        self._targets = targets
        self._detailed, self._keep_open, self._count = detailed, keep_open, count_processes
        self._found: list[Found] = []
        self._given_up = False
        self.reader = reader
        self.over = False

    def run(self) -> None:
        """Look at one after the other, until all are seen or it is given up. The thread is left in one of the namespaces."""
        try:
            for each in self._targets:
                found = self._at(each)
                if self._given_up:
                    return
                self._found.append(found)
        finally:
            self.over = True

    @property
    def seen(self) -> list[tuple[Target, Found]]:
        """What has been looked at."""
        return list(zip(self._targets, tuple(self._found), strict=False))

    def give_up(self) -> tuple[Target, Sequence[Target]]:
        """What it stands at, and what comes after that. To be called in the event loop when ``run`` does not end."""
        self._given_up = True
        place = min(len(self._found), len(self._targets) - 1)
        return self._targets[place], self._targets[place + 1 :]

    def _at(self, target: Target) -> Found:
        detailed = self._detailed and target.detailed
        look, details, processes = None, None, None
        if target.cgroup is not None:
            try:
                look, details = self.reader.read(target.cgroup, detailed=detailed, keep_open=self._keep_open)
            except BridgeError as exc:
                _logger.warning("no statistics of %s: %s", target.ident[:13], exc)
        if look is not None and look.cpu_ns is None and look.memory is None:  # it ended meanwhile, or has none yet
            look, details = None, None
        if look is not None and detailed and target.pid and self._count and target.cgroup is not None:
            processes = process_counts.read(target.cgroup, target.pid, on=self.reader.hierarchies)
        network = None if target.netns is None else net_stats.read_in_this_thread({target.ident: target.netns}).get(target.ident)
        return Found(look, details, processes, network)
