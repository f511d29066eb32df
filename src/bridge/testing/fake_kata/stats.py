"""What a container uses, as Kata tells it: the message for the host's cgroup version, with numbers of the guest."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread
from betterproto2 import Message

from bridge._proto.containerd.types import Any
from bridge._proto.io.containerd.cgroups import v1, v2
from bridge.host import cgroup_stats, cgroups, net_stats
from bridge.shimv2.encoding import packed


async def metrics(cgroup: str, netns: Path) -> Any:
    """Metrics of the version that the host has; those of v1 have the interfaces too. Raises HostError."""
    found = await to_thread.run_sync(cgroup_stats.read, cgroup)
    if cgroups.is_v2():
        return packed("io.containerd.cgroups.v2.Metrics", _v2(found))
    interfaces = (await net_stats.read({"pod": netns}))["pod"].interfaces
    return packed("io.containerd.cgroups.v1.Metrics", _v1(found, interfaces))


def _v1(found: cgroup_stats.CgroupStats, interfaces: tuple[net_stats.Interface, ...]) -> Message:
    memory = found.memory or cgroup_stats.Memory(0, 0)
    return v1.Metrics(
        pids=v1.PidsStat(current=found.processes or 0),
        cpu=v1.CpuStat(usage=v1.CpuUsage(total=found.cpu_ns or 0)),
        memory=v1.MemoryStat(
            total_rss=memory.rss or 0,
            total_inactive_file=memory.usage - (memory.working_set or 0),
            total_pg_fault=memory.page_faults or 0,
            total_pg_maj_fault=memory.major_page_faults or 0,
            usage=v1.MemoryEntry(usage=memory.usage, limit=memory.limit or 0),
        ),
        network=[
            v1.NetworkStat(
                name=each.name, rx_bytes=each.rx_bytes, rx_errors=each.rx_errors, tx_bytes=each.tx_bytes, tx_errors=each.tx_errors
            )
            for each in interfaces
        ],
    )


def _v2(found: cgroup_stats.CgroupStats) -> Message:
    memory = found.memory or cgroup_stats.Memory(0, 0)
    return v2.Metrics(
        pids=v2.PidsStat(current=found.processes or 0),
        cpu=v2.CpuStat(usage_usec=(found.cpu_ns or 0) // 1000),
        memory=v2.MemoryStat(
            anon=memory.rss or 0,
            inactive_file=memory.usage - (memory.working_set or 0),
            pgfault=memory.page_faults or 0,
            pgmajfault=memory.major_page_faults or 0,
            usage=memory.usage,
            usage_limit=memory.limit or 0,
        ),
    )
