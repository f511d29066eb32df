"""What a container uses as its shim says it: Metrics of cgroup v1 or v2, as the numbers that the host's own files would give.

A message can't tell zero from what the shim does not know (proto3). What runs has used CPU time and memory, has had page faults and has a
thread: of these, zero is not known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from bridge._proto.io.containerd.cgroups import v1, v2
from bridge.errors import CorruptData
from bridge.host.cgroup_stats import CgroupStats, Memory, Pressure, Pressures, Swap
from bridge.shimv2.encoding import decode, type_name
from bridge.shimv2.task import ShimTask

if TYPE_CHECKING:
    from bridge._proto.containerd.types import Any

_FRESH_SECONDS = 0.4
_ASK_SECONDS = 2.0
_UNLIMITED = 1 << 60
"""Limits above are none: v1 says so with a number near 2**63."""
V1, V2 = "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"


class Sampler:
    """Asks a shim a few times a second at most, whoever wants to know how often; the server paces its own questions."""

    def __init__(self) -> None:
        self._asking = anyio.Lock()
        self._asked = -_FRESH_SECONDS
        self._known: CgroupStats | None = None

    async def sample(self, task: ShimTask) -> CgroupStats | None:
        """What it uses, or used a moment ago; None where the shim can't say. Raises what the call does."""
        async with self._asking:
            now = anyio.current_time()
            if now - self._asked >= _FRESH_SECONDS:
                self._asked = now
                found = await task.stats(timeout=_ASK_SECONDS)
                self._known = None if found is None else read(found, time.time_ns())
        return self._known


def read(metrics: Any, at_ns: int) -> CgroupStats:
    """``metrics`` as usage at ``at_ns`` (Unix time). Raises CorruptData for another type, or bytes that aren't of it."""
    name = type_name(metrics)
    if name == V1:
        return from_v1(decode(v1.Metrics, metrics.value), at_ns)
    if name == V2:
        return from_v2(decode(v2.Metrics, metrics.value), at_ns)
    raise CorruptData(f"the shim's statistics are of the unknown type {name!r}")


def from_v1(found: v1.Metrics, at_ns: int) -> CgroupStats:
    """Of cgroup v1; memory counts what is below the cgroup too."""
    memory = swap = None
    stat = found.memory
    if stat is not None and stat.usage is not None:
        limit = _bounded(stat.usage.limit)
        working = max(0, stat.usage.usage - stat.total_inactive_file)
        faults, major = stat.total_pg_fault or stat.pg_fault, stat.total_pg_maj_fault or stat.pg_maj_fault
        memory = _memory(stat.usage.usage, working, stat.total_rss or stat.rss, faults, major, limit)
        if stat.swap is not None and stat.swap.usage:
            both = _bounded(stat.swap.limit)
            room = None if both is None or limit is None else max(0, both - limit)
            swap = Swap(max(0, stat.swap.usage - stat.usage.usage), room)
    cpu = found.cpu.usage.total if found.cpu is not None and found.cpu.usage is not None else None
    threads = None if found.pids is None else found.pids.current or None
    return CgroupStats(at_ns, cpu_ns=cpu or None, memory=memory, swap=swap, processes=threads)


def from_v2(found: v2.Metrics, at_ns: int) -> CgroupStats:
    """Of cgroup v2."""
    memory = swap = None
    stat = found.memory
    if stat is not None:
        working = max(0, stat.usage - stat.inactive_file)
        memory = _memory(stat.usage, working, stat.anon, stat.pgfault, stat.pgmajfault, _bounded(stat.usage_limit))
        swap = Swap(stat.swap_usage, _bounded(stat.swap_limit))
    return CgroupStats(
        at_ns,
        cpu_ns=None if found.cpu is None else found.cpu.usage_usec * 1000 or None,
        memory=memory,
        swap=swap,
        processes=None if found.pids is None else found.pids.current or None,
        cpu_pressure=None if found.cpu is None else _pressures(found.cpu.psi),
        memory_pressure=None if stat is None else _pressures(stat.psi),
        io_pressure=None if found.io is None else _pressures(found.io.psi),
    )


def _memory(usage: int, working: int, rss: int, faults: int, major: int, limit: int | None) -> Memory | None:
    if not usage:
        return None
    return Memory(usage, working, rss or None, faults or None, major if faults else None, limit)


def _pressures(psi: v2.PsiStats | None) -> Pressures | None:
    if psi is None or psi.some is None:
        return None
    return Pressures(_pressure(psi.some), _pressure(psi.full) if psi.full is not None else None)


def _pressure(data: v2.PsiData) -> Pressure:
    return Pressure(data.avg10, data.avg60, data.avg300, data.total * 1000)


def _bounded(limit: int) -> int | None:
    return None if not 0 < limit < _UNLIMITED else limit
