"""A shim's Metrics as usage, and how often a shim is asked."""

from __future__ import annotations

from typing import Any, cast

import pytest
from betterproto2 import Message

from bridge._proto.io.containerd.cgroups import v1, v2
from bridge.errors import CorruptData
from bridge.shimv2 import stats
from bridge.shimv2.encoding import packed
from bridge.shimv2.task import ShimTask

_NONE = 9223372036854771712


def of_v1(limit: int = 1000) -> v1.Metrics:
    memory = v1.MemoryStat(
        usage=v1.MemoryEntry(usage=500, limit=limit),
        swap=v1.MemoryEntry(usage=600, limit=limit + 200),
        total_inactive_file=100,
        total_rss=300,
        total_pg_fault=7,
        total_pg_maj_fault=2,
    )
    return v1.Metrics(pids=v1.PidsStat(current=3), cpu=v1.CpuStat(usage=v1.CpuUsage(total=99)), memory=memory)


def test_version_1() -> None:
    found = stats.read(packed(stats.V1, of_v1()), 5)
    assert (found.at_ns, found.cpu_ns, found.processes) == (5, 99, 3)
    assert found.memory is not None
    assert (found.memory.usage, found.memory.working_set, found.memory.rss, found.memory.limit) == (500, 400, 300, 1000)
    assert (found.memory.page_faults, found.memory.major_page_faults) == (7, 2)
    assert found.swap is not None
    assert (found.swap.usage, found.swap.limit) == (100, 200)
    unlimited = stats.read(packed(stats.V1, of_v1(_NONE)), 5)
    assert unlimited.memory is not None
    assert unlimited.memory.limit is None


def test_version_2() -> None:
    psi = v2.PsiStats(some=v2.PsiData(avg10=1.5, total=4))
    memory = v2.MemoryStat(usage=500, usage_limit=(1 << 64) - 1, inactive_file=600, anon=300, swap_usage=9, swap_limit=10)
    metrics = v2.Metrics(pids=v2.PidsStat(current=3), cpu=v2.CpuStat(usage_usec=7, psi=psi), memory=memory)
    found = stats.read(packed(stats.V2, metrics), 5)
    assert (found.cpu_ns, found.processes) == (7000, 3)
    assert found.memory is not None
    assert (found.memory.usage, found.memory.working_set, found.memory.limit) == (500, 0, None)
    assert found.swap is not None
    assert (found.swap.usage, found.swap.limit) == (9, 10)
    assert found.cpu_pressure is not None
    assert (found.cpu_pressure.some.avg10, found.cpu_pressure.some.total_ns, found.cpu_pressure.full) == (1.5, 4000, None)
    assert found.memory_pressure is None


@pytest.mark.parametrize("metrics", [v1.Metrics(), v2.Metrics()])
def test_what_is_not_told_is_unknown(metrics: Message) -> None:
    found = stats.read(packed(stats.V1 if isinstance(metrics, v1.Metrics) else stats.V2, metrics), 5)
    assert (found.cpu_ns, found.memory, found.swap, found.processes) == (None, None, None, None)


@pytest.mark.parametrize(
    "metrics",
    [
        v1.Metrics(
            pids=v1.PidsStat(),
            cpu=v1.CpuStat(usage=v1.CpuUsage()),
            memory=v1.MemoryStat(usage=v1.MemoryEntry(usage=500), total_pg_maj_fault=0),
        ),
        v2.Metrics(pids=v2.PidsStat(), cpu=v2.CpuStat(), memory=v2.MemoryStat(usage=500)),
    ],
)
def test_what_a_running_container_has_some_of_is_unknown_where_it_is_zero(metrics: Message) -> None:
    found = stats.read(packed(stats.V1 if isinstance(metrics, v1.Metrics) else stats.V2, metrics), 5)
    assert (found.cpu_ns, found.processes) == (None, None)
    assert found.memory is not None
    assert (found.memory.usage, found.memory.working_set) == (500, 500)
    assert (found.memory.rss, found.memory.page_faults, found.memory.major_page_faults) == (None, None, None)


@pytest.mark.parametrize("metrics", [v1.Metrics(memory=v1.MemoryStat(usage=v1.MemoryEntry())), v2.Metrics(memory=v2.MemoryStat())])
def test_no_memory_at_all_is_none_known(metrics: Message) -> None:
    assert stats.read(packed(stats.V1 if isinstance(metrics, v1.Metrics) else stats.V2, metrics), 5).memory is None


def test_another_type_is_refused() -> None:
    with pytest.raises(CorruptData, match="unknown type"):
        stats.read(packed("some.Thing", v1.Metrics()), 5)


async def test_a_shim_is_asked_a_few_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        count = 0

        async def stats(self, *, timeout: float) -> Any:
            self.count += 1
            return packed(stats.V1, of_v1())

    asked, sampler = Asked(), stats.Sampler()
    task = cast("ShimTask", asked)
    first = await sampler.sample(task)
    assert await sampler.sample(task) is first
    assert asked.count == 1
    monkeypatch.setattr(stats, "_FRESH_SECONDS", 0.0)
    assert await sampler.sample(task) is not first
    assert asked.count == 2
