"""What a pod without a cgroup of its own uses: what its containers use together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bridge.core.sampler import Sample
from bridge.host.cgroup_stats import CgroupStats, Memory


class PodSums:
    """Remembers what containers have spent, so that a pod's CPU time does not go back when one of them ends."""

    def __init__(self) -> None:
        self._spent: dict[str, dict[str, int]] = {}

    def of(self, sandbox_id: str, running: Mapping[str, Sample]) -> Sample:
        """Of the pod whose containers that run have these samples, by id; nothing when nothing is known of one, or none runs."""
        looks = {ident: each.cgroup for ident, each in running.items() if each.cgroup is not None}
        if not looks or len(looks) < len(running):
            return Sample()
        look = CgroupStats(
            at_ns=min(each.at_ns for each in looks.values()),
            cpu_ns=self._cpu(sandbox_id, {ident: each.cpu_ns for ident, each in looks.items()}),
            memory=_memory([each.memory for each in looks.values()]),
            processes=_sum(each.processes for each in looks.values()),
        )
        return Sample(cgroup=look, nano_cores=_sum(each.nano_cores for each in running.values()))

    def forget(self, alive: Callable[[str], bool]) -> None:
        """Drop what is kept of pods that are not ``alive`` any more."""
        for ident in [ident for ident in self._spent if not alive(ident)]:
            del self._spent[ident]

    def _cpu(self, sandbox_id: str, counters: Mapping[str, int | None]) -> int | None:
        spent = self._spent.setdefault(sandbox_id, {})
        for ident, counter in counters.items():
            if counter is None:
                return None
            spent[ident] = max(counter, spent.get(ident, 0))
        return sum(spent.values())


def _memory(of_each: Sequence[Memory | None]) -> Memory | None:
    known = [each for each in of_each if each is not None]
    if len(known) < len(of_each):
        return None
    return Memory(
        usage=sum(each.usage for each in known),
        working_set=_sum(each.working_set for each in known),
        rss=_sum(each.rss for each in known),
        page_faults=_sum(each.page_faults for each in known),
        major_page_faults=_sum(each.major_page_faults for each in known),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    """None when one is not known: a part is not the whole."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
