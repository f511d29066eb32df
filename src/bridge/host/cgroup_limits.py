"""Limits of a cgroup that this server made itself: CPU and memory, in both versions' files. Blocking: for worker threads.

Containers' limits are the runtimes' work. Sources: cgroup-v1/memory.rst, cgroup-v2.rst, sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import HostError
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout
from bridge.host.cgroups import layout


@dataclass(frozen=True, slots=True)
class PodLimits:
    """``shares`` as cgroup v1 counts them, 0 for the kernel's own; ``quota`` and ``period`` in µs and ``memory`` in bytes, -1 for none."""

    shares: int = 0
    quota: int = -1
    period: int = 100_000
    memory: int = -1


def weight_of(shares: int) -> int:
    """cpu.weight (1–10000) for cpu.shares (2–262144), on the line that runc and crun have used since cgroup v2."""
    return 1 + ((min(max(shares, 2), 262144) - 2) * 9999) // 262142


def files_v1(limits: PodLimits) -> Iterator[tuple[str, str, str]]:
    """(controller, file, value) in the order of writing: a period is only taken while the quota fits it."""
    yield "cpu", "cpu.shares", str(limits.shares or 1024)
    yield "cpu", "cpu.cfs_quota_us", "-1"
    yield "cpu", "cpu.cfs_period_us", str(limits.period)
    yield "cpu", "cpu.cfs_quota_us", str(limits.quota)
    yield "memory", "memory.limit_in_bytes", str(limits.memory)


def files_v2(limits: PodLimits) -> Iterator[tuple[str, str, str]]:
    """The same for cgroup v2."""
    yield UNIFIED, "cpu.weight", str(weight_of(limits.shares)) if limits.shares else "100"
    yield UNIFIED, "cpu.max", f"{'max' if limits.quota < 0 else limits.quota} {limits.period}"
    yield UNIFIED, "memory.max", "max" if limits.memory < 0 else str(limits.memory)


def apply(cgroup: str, limits: PodLimits, *, on: CgroupLayout | None = None) -> None:
    """Set ``limits`` on an existing ``cgroup``; a controller that this host lacks limits nothing. Raises HostError naming the file."""
    hierarchies = on or layout()
    for controller, name, value in (files_v2 if hierarchies.is_v2 else files_v1)(limits):
        mount = hierarchies.mounts.get(controller)
        if mount is not None:
            _write(mount.directory(cgroup) / name, value)


def lift_quota(cgroup: str, *, on: CgroupLayout | None = None) -> None:
    """Take the CPU quota off a v1 cgroup. Raises HostError."""
    mount = (on or layout()).mounts.get("cpu")
    if mount is not None:
        _write(mount.directory(cgroup) / "cpu.cfs_quota_us", "-1")


def _write(file: Path, value: str) -> None:
    if not file.exists() and file.parent.exists():
        return  # the controller is not handed down to this cgroup
    try:
        file.write_text(value)
    except OSError as exc:
        raise HostError(f"can't write {value!r} to {file}: {exc.strerror}", errno=exc.errno) from exc
