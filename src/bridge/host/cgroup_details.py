"""More of what a cgroup uses: what the names of cAdvisor ask for and CRI's own statistics have no field for. Pure parsers.

Sources: cgroup-v1/memory.rst, cgroup-v1/hugetlb.rst, cgroup-v1/blkio-controller.rst, cgroup-v2.rst. Nothing is told as zero that a
kernel does not say: v2 has no counterpart of some counters.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.host.cgroup_paths import UNIFIED
from bridge.host.cgroup_stats import Read, keyed, number

_HUGE_PAGES = "/sys/kernel/mm/hugepages"
_V1_IO = re.compile(rb"^(\d+):(\d+) (Read|Write|Sync|Async|Discard) (\d+)$", re.MULTILINE)
_V2_IO = re.compile(rb"^(\d+):(\d+) (.*)$", re.MULTILINE)
_V2_KEYS = {b"rbytes": ("Read", 0), b"rios": ("Read", 1), b"wbytes": ("Write", 0), b"wios": ("Write", 1)} | {
    b"dbytes": ("Discard", 0),
    b"dios": ("Discard", 1),
}


@dataclass(frozen=True, slots=True)
class CpuDetails:
    """Nanoseconds; periods count. The three of throttling are None without a quota's controller."""

    user_ns: int | None = None
    system_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryDetails:
    """Bytes, but for the counters: ``limit_hits``, ``oom_kills``, and the faults of this cgroup without those below it."""

    cache: int | None = None
    mapped_file: int | None = None
    active_file: int | None = None
    inactive_file: int | None = None
    kernel: int | None = None
    peak: int | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None
    own_page_faults: int | None = None
    own_major_page_faults: int | None = None


@dataclass(frozen=True, slots=True)
class HugePages:
    """Bytes in pages of one size; ``peak`` None on v2."""

    usage: int
    peak: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """What one block device did for the cgroup; ``operation`` is Read, Write, Sync, Async or Discard."""

    major: int
    minor: int
    operation: str
    bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class CgroupDetails:
    """``huge_pages`` by size as the kernel writes it ("2MB"); ``threads_limit`` is pids.max, None for no limit."""

    cpu: CpuDetails = CpuDetails()
    memory: MemoryDetails = MemoryDetails()
    huge_pages: Mapping[str, HugePages] = field(default_factory=dict)
    io: tuple[DeviceIo, ...] = ()
    threads_limit: int | None = None


def parse(text: Read, *, is_v2: bool) -> CgroupDetails:
    """What the files say that ``text`` reads now."""
    return (from_v2 if is_v2 else from_v1)(text)


def from_v1(text: Read) -> CgroupDetails:
    """Out of v1's files; memory counts what is below the cgroup too."""
    cpu, stat = text("cpu", "cpu.stat"), text("memory", "memory.stat")
    return CgroupDetails(
        cpu=CpuDetails(
            user_ns=number(text("cpuacct", "cpuacct.usage_user")),
            system_ns=number(text("cpuacct", "cpuacct.usage_sys")),
            periods=keyed(cpu, b"nr_periods"),
            throttled_periods=keyed(cpu, b"nr_throttled"),
            throttled_ns=keyed(cpu, b"throttled_time"),
        ),
        memory=MemoryDetails(
            cache=keyed(stat, b"total_cache"),
            mapped_file=keyed(stat, b"total_mapped_file"),
            active_file=keyed(stat, b"total_active_file"),
            inactive_file=keyed(stat, b"total_inactive_file"),
            kernel=number(text("memory", "memory.kmem.usage_in_bytes")),
            peak=number(text("memory", "memory.max_usage_in_bytes")),
            limit_hits=number(text("memory", "memory.failcnt")),
            oom_kills=keyed(text("memory", "memory.oom_control"), b"oom_kill"),
            own_page_faults=keyed(stat, b"pgfault"),
            own_major_page_faults=keyed(stat, b"pgmajfault"),
        ),
        huge_pages=_huge_pages(text, "hugetlb", "usage_in_bytes", "max_usage_in_bytes"),
        io=_io_of_v1(text),
        threads_limit=number(text("pids", "pids.max")),
    )


def from_v2(text: Read) -> CgroupDetails:
    """Out of v2's files."""
    cpu, stat, events = text(UNIFIED, "cpu.stat"), text(UNIFIED, "memory.stat"), text(UNIFIED, "memory.events")
    return CgroupDetails(
        cpu=CpuDetails(
            user_ns=_nanoseconds(keyed(cpu, b"user_usec")),
            system_ns=_nanoseconds(keyed(cpu, b"system_usec")),
            periods=keyed(cpu, b"nr_periods"),
            throttled_periods=keyed(cpu, b"nr_throttled"),
            throttled_ns=_nanoseconds(keyed(cpu, b"throttled_usec")),
        ),
        memory=MemoryDetails(
            cache=keyed(stat, b"file"),
            mapped_file=keyed(stat, b"file_mapped"),
            active_file=keyed(stat, b"active_file"),
            inactive_file=keyed(stat, b"inactive_file"),
            kernel=keyed(stat, b"kernel"),
            peak=number(text(UNIFIED, "memory.peak")),
            limit_hits=keyed(events, b"max"),
            oom_kills=keyed(events, b"oom_kill"),
        ),
        huge_pages=_huge_pages(text, UNIFIED, "current", ""),
        io=_io_of_v2(text(UNIFIED, "io.stat")),
        threads_limit=number(text(UNIFIED, "pids.max")),
    )


def _nanoseconds(microseconds: int | None) -> int | None:
    return None if microseconds is None else microseconds * 1000


def _huge_pages(text: Read, controller: str, usage: str, peak: str) -> Mapping[str, HugePages]:
    found = {}
    for size in page_sizes():
        used = number(text(controller, f"hugetlb.{size}.{usage}"))
        if used is not None:
            found[size] = HugePages(used, number(text(controller, f"hugetlb.{size}.{peak}")) if peak else None)
    return found


@functools.cache
def page_sizes() -> tuple[str, ...]:
    """The sizes of huge pages that this kernel has, as its cgroup files name them: "2MB", "1GB"."""
    try:
        kilobytes = sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) for name in os.listdir(_HUGE_PAGES))
    except FileNotFoundError:
        return ()
    return tuple(f"{each >> 20}GB" if each >= 1 << 20 else f"{each >> 10}MB" if each >= 1 << 10 else f"{each}KB" for each in kilobytes)


def _io_of_v1(text: Read) -> tuple[DeviceIo, ...]:
    """By the throttling policy: it counts whatever scheduler a disk has."""
    amounts: dict[tuple[int, int, str], list[int]] = {}
    for place, name in enumerate(("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced")):
        for major, minor, operation, amount in _V1_IO.findall(text("blkio", f"{name}_recursive") or text("blkio", name)):
            amounts.setdefault((int(major), int(minor), operation.decode()), [0, 0])[place] = int(amount)
    return tuple(DeviceIo(*key, *both) for key, both in amounts.items())


def _io_of_v2(text: bytes) -> tuple[DeviceIo, ...]:
    amounts: dict[tuple[int, int, str], list[int]] = {}
    for major, minor, rest in _V2_IO.findall(text):
        for word in rest.split():
            name, _, amount = word.partition(b"=")
            if name in _V2_KEYS and amount.isdigit():
                operation, place = _V2_KEYS[name]
                amounts.setdefault((int(major), int(minor), operation), [0, 0])[place] = int(amount)
    return tuple(DeviceIo(*key, *both) for key, both in amounts.items())
