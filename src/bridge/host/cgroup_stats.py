"""What a cgroup uses, from its files: pure parsers for v1 and v2, and one reader for both. Blocking: for worker threads.

Sources: cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst, cgroup-v2.rst, accounting/psi.rst. Absent files (another kernel, a controller
that is off, a cgroup that is gone) and absent lines give None: what is not known is never told as zero.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.errors import HostError
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout
from bridge.host.cgroups import layout

_UNLIMITED = 1 << 62
"""cgroup v1 tells "no limit" as the largest number of whole pages."""
_PRESSURE = re.compile(rb"(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=([\d.]+) total=(\d+)")
_ROOM = 65536
Read = Callable[[str, str], bytes]
"""(controller, file name) → what is in it, b"" when there is none."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a PSI file: shares of time in per cent, ``total`` in nanoseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_ns: int


@dataclass(frozen=True, slots=True)
class Pressures:
    """A PSI file: some tasks waited, all waited (None: kernels before 5.13 don't say it for CPU)."""

    some: Pressure
    full: Pressure | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, but for the two counters of faults. ``working_set`` is the usage without what reclaim would take first."""

    usage: int
    working_set: int | None = None
    rss: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    limit: int | None = None

    @property
    def available(self) -> int | None:
        """What the limit leaves; None without one."""
        return None if self.limit is None or self.working_set is None else max(0, self.limit - self.working_set)


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

    def text(controller: str, name: str) -> bytes:
        if controller not in directories:
            mount = hierarchies.mounts.get(controller)
            directories[controller] = None if mount is None else str(mount.directory(cgroup))
        directory = directories[controller]
        return b"" if directory is None else _text(f"{directory}/{name}")

    return parse(text, is_v2=hierarchies.is_v2)


def parse(text: Read, *, is_v2: bool) -> CgroupStats:
    """What the files say that ``text`` reads now."""
    return (from_v2 if is_v2 else from_v1)(text, time.time_ns())


def _text(path: str) -> bytes:
    descriptor = open_file(path)
    if descriptor is None:
        return b""
    try:
        return os.read(descriptor, _ROOM)
    except OSError:  # ENODEV: the cgroup went meanwhile; EOPNOTSUPP: pressure is off
        return b""
    finally:
        os.close(descriptor)


def open_file(path: str) -> int | None:
    """A descriptor of a cgroup's file; None when there is none. Raises HostError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc


def from_v1(text: Read, at_ns: int) -> CgroupStats:
    """Out of v1's files; memory counts what is below the cgroup too.

    Pressure is in the v2 hierarchy of a hybrid host, if that is where the processes are too: of an empty cgroup the kernel tells zeros.
    """
    usage = number(text("memory", "memory.usage_in_bytes"))
    memory = swap = None
    if usage is not None:
        stat = text("memory", "memory.stat")
        limit = _bounded(number(text("memory", "memory.limit_in_bytes")))
        memory = _memory(usage, stat, (b"total_inactive_file", b"total_rss", b"total_pgfault", b"total_pgmajfault"), limit)
        swapped = keyed(stat, b"total_swap")
        if swapped is not None:  # the line and the files of "memsw" are there with swap accounting
            both_limit = _bounded(number(text("memory", "memory.memsw.limit_in_bytes")))
            swap = Swap(swapped, None if both_limit is None or limit is None else max(0, both_limit - limit))
    return CgroupStats(
        at_ns,
        cpu_ns=number(text("cpuacct", "cpuacct.usage")),
        memory=memory,
        swap=swap,
        processes=number(text("pids", "pids.current")),
        **(_pressures(text) if b"populated 1" in text(UNIFIED, "cgroup.events") else {}),
    )


def from_v2(text: Read, at_ns: int) -> CgroupStats:
    """Out of v2's files."""
    usage = number(text(UNIFIED, "memory.current"))
    memory = swap = None
    if usage is not None:
        limit = number(text(UNIFIED, "memory.max"))
        memory = _memory(usage, text(UNIFIED, "memory.stat"), (b"inactive_file", b"anon", b"pgfault", b"pgmajfault"), limit)
        swapped = number(text(UNIFIED, "memory.swap.current"))
        swap = None if swapped is None else Swap(swapped, number(text(UNIFIED, "memory.swap.max")))
    microseconds = keyed(text(UNIFIED, "cpu.stat"), b"usage_usec")
    return CgroupStats(
        at_ns,
        cpu_ns=None if microseconds is None else microseconds * 1000,
        memory=memory,
        swap=swap,
        processes=number(text(UNIFIED, "pids.current")),
        **_pressures(text),
    )


def _memory(usage: int, stat: bytes, names: tuple[bytes, bytes, bytes, bytes], limit: int | None) -> Memory:
    cache, rss, faults, major = (keyed(stat, name) for name in names)
    return Memory(usage, None if cache is None else max(0, usage - cache), rss, faults, major, limit)


def _pressures(text: Read) -> dict[str, Pressures | None]:
    return {f"{kind}_pressure": pressure(text(UNIFIED, f"{kind}.pressure")) for kind in ("cpu", "memory", "io")}


def keyed(text: bytes, name: bytes) -> int | None:
    """The number after ``name`` in a flat keyed file; None without such a line. Faster than taking apart all of memory.stat."""
    start = 0 if text.startswith(name + b" ") else text.find(b"\n" + name + b" ") + 1
    if start or text.startswith(name + b" "):
        start += len(name) + 1
        end = text.find(b"\n", start)
        return number(text[start:] if end < 0 else text[start:end])
    return None


def pressure(text: bytes) -> Pressures | None:
    """A PSI file; None when there is nothing in it."""
    lines = {
        kind: Pressure(float(ten), float(sixty), float(more), int(total) * 1000)
        for kind, ten, sixty, more, total in _PRESSURE.findall(text)
    }
    return Pressures(lines[b"some"], lines.get(b"full")) if b"some" in lines else None


def number(text: bytes) -> int | None:
    """The number in a file; None for an absent file and for "max"."""
    value = text.strip()
    return int(value) if value.isdigit() else None


def _bounded(limit: int | None) -> int | None:
    return None if limit is None or limit >= _UNLIMITED else limit
