"""A pod without a cgroup of its own: sums, and what they must not do."""

from __future__ import annotations

from bridge.core.pod_sums import PodSums
from bridge.core.sampler import Sample
from bridge.host.cgroup_stats import CgroupStats, Memory


def sample(cpu: int | None, rate: int | None = 1, memory: Memory | None = None, processes: int | None = 1) -> Sample:
    return Sample(1.0, CgroupStats(10, cpu, memory, processes=processes), rate)


def test_containers_together() -> None:
    one, two = Memory(5, 4, 3, 2, 1, limit=9), Memory(50, 40, 30, 20, 10)
    found = PodSums().of("pod", {"a": sample(100, 1, one), "b": sample(200, 2, two, 3)})
    assert found.cgroup == CgroupStats(10, 300, Memory(55, 44, 33, 22, 11), processes=4)
    assert found.nano_cores == 3


def test_a_part_is_not_the_whole() -> None:
    sums = PodSums()
    assert sums.of("pod", {"a": sample(100), "b": Sample()}) == Sample()
    assert sums.of("pod", {}) == Sample()
    found = sums.of("pod", {"a": sample(100, None, Memory(5, 4), None), "b": sample(None, 7, Memory(5, 4, 3), 2)})
    assert found.cgroup == CgroupStats(10, None, Memory(10, 8))
    assert found.nano_cores is None
    unknown = sums.of("pod", {"a": sample(100, 1, Memory(5)), "b": sample(100)})
    assert unknown.cgroup is not None
    assert unknown.cgroup.memory is None


def test_the_counter_does_not_go_back_when_a_container_ends() -> None:
    sums = PodSums()
    counters = []
    for running in ({"a": 100, "b": 200}, {"b": 210}, {"b": 220, "c": 1}):
        look = sums.of("pod", {ident: sample(cpu) for ident, cpu in running.items()}).cgroup
        assert look is not None
        counters.append(look.cpu_ns)
    assert counters == [300, 310, 321]
    sums.forget(lambda ident: ident != "pod")
    again = sums.of("pod", {"b": sample(230)}).cgroup
    assert again is not None
    assert again.cpu_ns == 230
