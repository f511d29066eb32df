"""The rows of what a container uses: CPU, memory, huge pages, waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bridge.core.metric_groups import Group
from bridge.core.metrics_table import ContainerMetric, Kind, Seen, Value, row, seconds, single
from bridge.host.cgroup_details import CpuDetails, HugePages, MemoryDetails
from bridge.host.cgroup_stats import Memory, Pressures


def _cpu_total(seen: Seen) -> Iterable[Value]:
    spent = seconds(seen.look.cpu_ns)
    return () if spent is None else (Value(("total",), spent, seen.look.at_ns),)


def _memory(read: Callable[[Memory], int | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if seen.look.memory is None else read(seen.look.memory))


def _detail(read: Callable[[MemoryDetails], int | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if seen.details is None else read(seen.details.memory))


def _cpu(read: Callable[[CpuDetails], int | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if seen.details is None else read(seen.details.cpu))


def _failures(seen: Seen) -> Iterable[Value]:
    """A kernel that does not count a cgroup's own apart (v2) counts those below it in, which are the container's as well."""
    memory, details = seen.look.memory, seen.details
    if memory is None or details is None:
        return
    own = details.memory
    for name, alone, together in (
        ("pgfault", own.own_page_faults, memory.page_faults),
        ("pgmajfault", own.own_major_page_faults, memory.major_page_faults),
    ):
        for scope, value in (("container", together if alone is None else alone), ("hierarchy", together)):
            if value is not None:
                yield Value((name, scope), value, seen.look.at_ns)


def _huge_pages(seen: Seen) -> Iterable[Value]:
    return [Value((size,), pages.usage, seen.look.at_ns) for size, pages in _pages(seen)]


def _huge_pages_peak(seen: Seen) -> Iterable[Value]:
    return [Value((size,), pages.peak, seen.look.at_ns) for size, pages in _pages(seen) if pages.peak is not None]


def _pages(seen: Seen) -> Iterable[tuple[str, HugePages]]:
    return () if seen.details is None else seen.details.huge_pages.items()


def _some(read: Callable[[Seen], Pressures | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if (found := read(seen)) is None else seconds(found.some.total_ns))


def _all(read: Callable[[Seen], Pressures | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if (found := read(seen)) is None or found.full is None else seconds(found.full.total_ns))


_C, _G = Kind.COUNTER, Kind.GAUGE
_CPU, _MEMORY, _PRESSURE = Group.CPU, Group.MEMORY, Group.PRESSURE

USAGE: tuple[ContainerMetric, ...] = (
    row(Group.ALWAYS, _G, "last_seen", "Unix time of the last look at the container.", single(lambda seen: seconds(seen.look.at_ns))),
    row(_CPU, _C, "cpu_user_seconds_total", "CPU time spent in user mode.", _cpu(lambda cpu: seconds(cpu.user_ns))),
    row(_CPU, _C, "cpu_system_seconds_total", "CPU time spent in the kernel.", _cpu(lambda cpu: seconds(cpu.system_ns))),
    row(_CPU, _C, "cpu_usage_seconds_total", "CPU time spent, on all CPUs together.", _cpu_total, ("cpu",)),
    row(_CPU, _C, "cpu_cfs_periods_total", "Periods of the CPU quota that have gone by.", _cpu(lambda cpu: cpu.periods)),
    row(
        _CPU,
        _C,
        "cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        _cpu(lambda cpu: cpu.throttled_periods),
    ),
    row(
        _CPU,
        _C,
        "cpu_cfs_throttled_seconds_total",
        "Time that the CPU quota held the container up.",
        _cpu(lambda cpu: seconds(cpu.throttled_ns)),
    ),
    row(_MEMORY, _G, "memory_cache", "Page cache in bytes.", _detail(lambda memory: memory.cache)),
    row(_MEMORY, _G, "memory_rss", "Anonymous memory in bytes.", _memory(lambda memory: memory.rss)),
    row(_MEMORY, _G, "memory_kernel_usage", "Memory of the kernel's in bytes.", _detail(lambda memory: memory.kernel)),
    row(_MEMORY, _G, "memory_mapped_file", "Page cache that is mapped, in bytes.", _detail(lambda memory: memory.mapped_file)),
    row(_MEMORY, _G, "memory_swap", "Swap in bytes.", single(lambda seen: None if seen.look.swap is None else seen.look.swap.usage)),
    row(_MEMORY, _C, "memory_failcnt", "How often the memory limit was hit.", _detail(lambda memory: memory.limit_hits)),
    row(_MEMORY, _G, "memory_usage_bytes", "Memory in bytes, caches included.", _memory(lambda memory: memory.usage)),
    row(_MEMORY, _G, "memory_max_usage_bytes", "The most memory ever used, in bytes.", _detail(lambda memory: memory.peak)),
    row(
        _MEMORY, _G, "memory_working_set_bytes", "Memory without inactive page cache, in bytes.", _memory(lambda memory: memory.working_set)
    ),
    row(_MEMORY, _G, "memory_total_active_file_bytes", "Page cache in active use, in bytes.", _detail(lambda memory: memory.active_file)),
    row(_MEMORY, _G, "memory_total_inactive_file_bytes", "Page cache out of use, in bytes.", _detail(lambda memory: memory.inactive_file)),
    row(_MEMORY, _C, "memory_failures_total", "Page faults, minor and major.", _failures, ("failure_type", "scope")),
    row(Group.OOM, _C, "oom_events_total", "Processes killed for want of memory.", _detail(lambda memory: memory.oom_kills)),
    row(Group.HUGETLB, _G, "hugetlb_usage_bytes", "Huge pages in bytes.", _huge_pages, ("pagesize",)),
    row(Group.HUGETLB, _G, "hugetlb_max_usage_bytes", "The most huge pages ever used, in bytes.", _huge_pages_peak, ("pagesize",)),
    row(
        _PRESSURE,
        _C,
        "pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for a CPU.",
        _all(lambda seen: seen.look.cpu_pressure),
    ),
    row(
        _PRESSURE,
        _C,
        "pressure_cpu_waiting_seconds_total",
        "Time in which a task waited for a CPU.",
        _some(lambda seen: seen.look.cpu_pressure),
    ),
    row(
        _PRESSURE,
        _C,
        "pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory.",
        _all(lambda seen: seen.look.memory_pressure),
    ),
    row(
        _PRESSURE,
        _C,
        "pressure_memory_waiting_seconds_total",
        "Time in which a task waited for memory.",
        _some(lambda seen: seen.look.memory_pressure),
    ),
    row(
        _PRESSURE,
        _C,
        "pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for disks.",
        _all(lambda seen: seen.look.io_pressure),
    ),
    row(
        _PRESSURE,
        _C,
        "pressure_io_waiting_seconds_total",
        "Time in which a task waited for disks.",
        _some(lambda seen: seen.look.io_pressure),
    ),
)
