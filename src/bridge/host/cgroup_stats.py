"""What a cgroup uses, from its files: pure parsers for v1 and v2, and one reader for both. Blocking: for worker threads.

Sources: cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst, cgroup-v2.rst, accounting/psi.rst. Absent files (another kernel, a controller
that is off, a cgroup that is gone) give None.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bridge.errors import HostError
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout
from bridge.host.cgroups import layout

_UNLIMITED = 1 << 62
"""cgroup v1 tells "no limit" as the largest number of whole pages."""
_PRESSURE = re.compile(r"(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=([\d.]+) total=(\d+)")
Read = Callable[[str, str], str]
"""(controller, file name) → its text, "" when there is none."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a PSI file: shares of time in per cent, ``total`` in nanoseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_ns: int


@dataclass(frozen=True, slots=True)
class Pressures:
    """A PSI file: some tasks waited, all waited."""

    some: Pressure
    full: Pressure


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, but for the two counters of faults. ``working_set`` is the usage without what reclaim would take first."""

    usage: int
    working_set: int
    rss: int
    page_faults: int
    major_page_faults: int
    limit: int | None = None

    @property
    def available(self) -> int | None:
        """What the limit leaves; None without one."""
        return None if self.limit is None else max(0, self.limit - self.working_set)


@dataclass(frozen=True, slots=True)
class Swap:
    """Bytes of swap; ``limit`` None where there is none."""

    usage: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """One look at a cgroup. ``at_ns`` is Unix time, ``cpu_ns`` CPU time since it was made, ``processes`` counts tasks (pids.current)."""

    at_ns: int
    cpu_ns: int | None = None
    memory: Memory | None = None
    swap: Swap | None = None
    processes: int | None = None
    cpu_pressure: Pressures | None = None
    memory_pressure: Pressures | None = None
    io_pressure: Pressures | None = None


def read(cgroup: str, *, on: CgroupLayout | None = None) -> CgroupStats:
    """What ``cgroup`` (a path from the hierarchies' root) uses now. Raises HostError when a file can't be read."""
    hierarchies = on or layout()
    directories: dict[str, str | None] = {}  # a node has hundreds of cgroups, and finding a path takes longer than reading it

    def text(controller: str, name: str) -> str:
        if controller not in directories:
            mount = hierarchies.mounts.get(controller)
            directories[controller] = None if mount is None else str(mount.directory(cgroup))
        directory = directories[controller]
        return "" if directory is None else _text(f"{directory}/{name}")

    parse = from_v2 if hierarchies.is_v2 else from_v1
    return parse(text, time.time_ns())


def _text(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc
    try:
        return os.read(descriptor, 65536).decode()
    except OSError:  # ENODEV: the cgroup went meanwhile; EOPNOTSUPP: pressure is off
        return ""
    finally:
        os.close(descriptor)


def from_v1(text: Read, at_ns: int) -> CgroupStats:
    """Out of v1's files; memory counts what is below the cgroup too. Pressure is in the v2 hierarchy of a hybrid host."""
    usage, limit = _number(text("memory", "memory.usage_in_bytes")), _number(text("memory", "memory.limit_in_bytes"))
    both, both_limit = _number(text("memory", "memory.memsw.usage_in_bytes")), _number(text("memory", "memory.memsw.limit_in_bytes"))
    stat = flat(text("memory", "memory.stat")) if usage is not None else {}
    memory = swap = None
    if usage is not None and stat:
        limit = _bounded(limit)
        memory = _memory(usage, stat, "total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault", limit)
        if both is not None:
            both_limit = _bounded(both_limit)
            room = None if both_limit is None or limit is None else max(0, both_limit - limit)
            swap = Swap(stat.get("total_swap", max(0, both - usage)), room)
    return CgroupStats(
        at_ns,
        cpu_ns=_number(text("cpuacct", "cpuacct.usage")),
        memory=memory,
        swap=swap,
        processes=_number(text("pids", "pids.current")),
        **_pressures(text),
    )


def from_v2(text: Read, at_ns: int) -> CgroupStats:
    """Out of v2's files."""
    usage = _number(text(UNIFIED, "memory.current"))
    memory = swap = None
    if usage is not None:
        stat = flat(text(UNIFIED, "memory.stat"))
        limit = _number(text(UNIFIED, "memory.max"))
        memory = _memory(usage, stat, "inactive_file", "anon", "pgfault", "pgmajfault", limit)
        swapped = _number(text(UNIFIED, "memory.swap.current"))
        swap = None if swapped is None else Swap(swapped, _number(text(UNIFIED, "memory.swap.max")))
    microseconds = flat(text(UNIFIED, "cpu.stat")).get("usage_usec")
    return CgroupStats(
        at_ns,
        cpu_ns=None if microseconds is None else microseconds * 1000,
        memory=memory,
        swap=swap,
        processes=_number(text(UNIFIED, "pids.current")),
        **_pressures(text),
    )


def _memory(usage: int, stat: Mapping[str, int], cache: str, rss: str, faults: str, major: str, limit: int | None) -> Memory:
    return Memory(
        usage=usage,
        working_set=max(0, usage - stat.get(cache, 0)),
        rss=stat.get(rss, 0),
        page_faults=stat.get(faults, 0),
        major_page_faults=stat.get(major, 0),
        limit=limit,
    )


def _pressures(text: Read) -> dict[str, Pressures | None]:
    return {f"{kind}_pressure": pressure(text(UNIFIED, f"{kind}.pressure")) for kind in ("cpu", "memory", "io")}


def flat(text: str) -> dict[str, int]:
    """A flat keyed file: one "name number" a line."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def pressure(text: str) -> Pressures | None:
    """A PSI file; None when there is nothing in it. Kernels before 5.13 have no "full" line for CPU."""
    lines = {
        kind: Pressure(float(ten), float(sixty), float(more), int(total) * 1000)
        for kind, ten, sixty, more, total in _PRESSURE.findall(text)
    }
    if "some" not in lines:
        return None
    return Pressures(lines["some"], lines.get("full", Pressure(0.0, 0.0, 0.0, 0)))


def _number(text: str) -> int | None:
    """The number in a file; None for an absent file and for "max"."""
    value = text.strip()
    return int(value) if value.isdigit() else None


def _bounded(limit: int | None) -> int | None:
    return None if limit is None or limit >= _UNLIMITED else limit
