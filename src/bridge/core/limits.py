"""The limits of CRI's LinuxContainerResources: checked, written as OCI resources, merged, and read back. Pure.

Memory in bytes, CPU period and quota in microseconds. 0 or "" in a request means "leave it alone", -1 "no limit". Sources:
CRI v1 LinuxContainerResources, OCI config-linux.md, cgroup-v1/memory.rst, cgroup-v2.rst, sched-bwc.rst.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bridge import log
from bridge.core.model import Resources
from bridge.errors import InvalidRequest, Unsupported
from bridge.host import cpu_lists
from bridge.host.facts import HostFacts

_logger = log.get("core.limits")
RESOURCES = "config.linux.resources"
_LEAST_SHARES, _MOST_SHARES = 2, 262144
"""What the kernel makes of anything beyond (kernel/sched/sched.h); runc refuses such values when it reads back others."""
_LEAST_QUOTA = 1000
_PERIODS = (1000, 1_000_000)
_UNIFIED_KEY = re.compile(r"([a-z][a-z0-9]*)(\.[A-Za-z0-9_-]+)+")


def build(wanted: Resources, facts: HostFacts, field: str = RESOURCES) -> dict[str, Any]:
    """The parts of ``linux.resources`` that limit memory, CPU and hugepages. Raises InvalidRequest or Unsupported naming the field."""
    parts: dict[str, Any] = {
        "memory": _memory(wanted, facts, field),
        "cpu": _cpu(wanted, facts, field),
        "hugepageLimits": _hugepages(wanted, facts, field),
        "unified": _unified(wanted, facts, field),
    }
    return {name: part for name, part in parts.items() if part}


def _memory(wanted: Resources, facts: HostFacts, field: str) -> dict[str, int]:
    """Limit, and memory+swap where it is accounted: as asked, else equal to the limit, so that a limit is a limit.

    A kubelet on cgroup v2 speaks of swap in ``unified`` alone, which wins: nothing else is said or reported then.
    """
    for name in ("memory_limit_in_bytes", "memory_swap_limit_in_bytes"):
        if getattr(wanted, name) < -1:
            raise InvalidRequest("is below -1", field=f"{field}.{name}")
    limit = wanted.memory_limit_in_bytes
    swap = wanted.memory_swap_limit_in_bytes or (0 if "memory.swap.max" in wanted.unified else limit)
    if swap > 0 and limit <= 0:
        raise InvalidRequest("needs memory_limit_in_bytes: it counts memory and swap together", field=f"{field}.memory_swap_limit_in_bytes")
    if 0 < swap < limit:
        raise InvalidRequest("is below memory_limit_in_bytes", field=f"{field}.memory_swap_limit_in_bytes")
    memory: dict[str, int] = {"limit": limit} if limit else {}
    if swap and facts.swap_accounting:
        memory["swap"] = swap
    elif wanted.memory_swap_limit_in_bytes not in (0, limit):
        _note_unaccounted()
    return memory


@lru_cache(maxsize=1)
def _note_unaccounted() -> None:
    _logger.warning("swap limits have no effect: this kernel does not account for swap (swapaccount=1 on its command line)")


def _cpu(wanted: Resources, facts: HostFacts, field: str) -> dict[str, int | str]:
    for name, least in (("cpu_shares", 0), ("cpu_period", 0), ("cpu_quota", -1)):
        if getattr(wanted, name) < least:
            raise InvalidRequest(f"is below {least}", field=f"{field}.{name}")
    if 0 < wanted.cpu_quota < _LEAST_QUOTA:
        raise InvalidRequest(f"{wanted.cpu_quota} is below the {_LEAST_QUOTA} µs that the kernel takes", field=f"{field}.cpu_quota")
    if wanted.cpu_period and not _PERIODS[0] <= wanted.cpu_period <= _PERIODS[1]:
        raise InvalidRequest(f"{wanted.cpu_period} is not between {_PERIODS[0]} and {_PERIODS[1]} µs", field=f"{field}.cpu_period")
    _check_set(wanted.cpuset_cpus, facts.cpus, "CPU", f"{field}.cpuset_cpus")
    _check_set(wanted.cpuset_mems, facts.memory_nodes, "memory node", f"{field}.cpuset_mems")
    values: dict[str, int | str] = {
        "shares": wanted.cpu_shares and min(max(wanted.cpu_shares, _LEAST_SHARES), _MOST_SHARES),
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    return {key: value for key, value in values.items() if value}


def _check_set(text: str, present: frozenset[int], what: str, field: str) -> None:
    if not text:
        return
    try:
        numbers = cpu_lists.parse(text)
    except ValueError as exc:
        raise InvalidRequest(f"{text!r} is no list such as 0-3,7: {exc}", field=field) from exc
    if not numbers:
        raise InvalidRequest(f"{text!r} names no {what}", field=field)
    if present and (absent := sorted(numbers - present)):
        raise InvalidRequest(f"this host has no {what} {', '.join(map(str, absent[:8]))}", field=field)


def _hugepages(wanted: Resources, facts: HostFacts, field: str) -> list[dict[str, Any]]:
    """The kubelet sends a limit of 0 for each size it knows; where no controller can hold it there is nothing to limit."""
    limits: dict[str, int] = {}
    for index, (size, limit) in enumerate(wanted.hugepage_limits):
        if size in limits:
            raise InvalidRequest(f"{size!r} is given twice", field=f"{field}.hugepage_limits[{index}].page_size")
        if size in facts.hugepage_sizes:
            limits[size] = limit
        elif limit:
            raise Unsupported(f"{field}.hugepage_limits[{index}]: this host can't limit hugepages of {size!r}")
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items()]


def _unified(wanted: Resources, facts: HostFacts, field: str) -> dict[str, str]:
    """Files of the container's own cgroup. The runtime writes them last, so that they win over the plain fields (OCI)."""
    if not wanted.unified:
        return {}
    if not facts.cgroup_v2:
        raise Unsupported(f"{field}.unified: this host has no cgroup v2")
    for key, value in wanted.unified.items():
        # A key is a file name in the container's cgroup: anything else could reach another cgroup.
        match = _UNIFIED_KEY.fullmatch(key)
        if match is None or match[1] == "cgroup":
            raise InvalidRequest(f"{key!r} is not a controller's file", field=f"{field}.unified")
        if facts.controllers and match[1] not in facts.controllers:
            known = ", ".join(sorted(facts.controllers))
            raise InvalidRequest(f"{key!r}: this host has no controller {match[1]!r} (it has {known})", field=f"{field}.unified")
        if "\0" in value or "\n" in value.rstrip("\n"):
            raise InvalidRequest(f"the value of {key!r} is not one line", field=f"{field}.unified")
    return dict(wanted.unified)


def in_force(resources: Mapping[str, Any], oom_score_adj: int) -> Resources:
    """What an OCI ``linux.resources`` limits, in CRI's terms: what ContainerStatus reports."""
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    return Resources(
        cpu_period=cpu.get("period", 0),
        cpu_quota=cpu.get("quota", 0),
        cpu_shares=cpu.get("shares", 0),
        memory_limit_in_bytes=memory.get("limit", 0),
        oom_score_adj=oom_score_adj,
        cpuset_cpus=cpu.get("cpus", ""),
        cpuset_mems=cpu.get("mems", ""),
        hugepage_limits=tuple((each["pageSize"], each["limit"]) for each in resources.get("hugepageLimits", ())),
        unified=dict(resources.get("unified", {})),
        memory_swap_limit_in_bytes=memory.get("swap", 0),
    )


def of_spec(spec: Mapping[str, Any]) -> Resources:
    """What a whole OCI spec limits; a precreate hook may have left any part out."""
    return in_force(spec["linux"].get("resources") or {}, spec["process"].get("oomScoreAdj") or 0)


def merged(current: Resources, change: Resources) -> Resources:
    """``current`` with what ``change`` says; what it leaves unset stays. The OOM score belongs to processes and stays.

    A new memory limit without a swap limit means no swap, as at creation.
    """
    given = {
        spec.name: getattr(change, spec.name)
        for spec in dataclasses.fields(Resources)
        if getattr(change, spec.name) and spec.name not in ("oom_score_adj", "hugepage_limits", "unified")
    }
    if change.memory_limit_in_bytes and not change.memory_swap_limit_in_bytes:
        given["memory_swap_limit_in_bytes"] = 0
    pages = {**dict(current.hugepage_limits), **dict(change.hugepage_limits)}
    unified = {**current.unified, **change.unified}
    return dataclasses.replace(current, **given, hugepage_limits=tuple(pages.items()), unified=unified)


_NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "memory": {"limit": -1, "swap": -1},
    "cpu": {"shares": 1024, "quota": -1, "period": 100_000},
}
"""What the kernel begins with: the way back from a limit where there was none. A CPU set has none: unset it is the parent's."""


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What of the OCI resources ``new`` is to be set where ``old`` is in force; runtimes leave alone what is not named.

    Quota and period go together, limit and swap too: the kernel judges them against each other. What only ``old`` has goes back to the
    kernel's beginning, where there is one.
    """
    changed: dict[str, Any] = {}
    for section, pairs in (("memory", (("limit", "swap"),)), ("cpu", (("quota", "period"), ("shares",), ("cpus",), ("mems",)))):
        before, after = old.get(section, {}), {**_NEUTRAL[section], **new.get(section, {})}
        part: dict[str, Any] = {}
        for pair in pairs:
            touched = [key for key in pair if key in before or key in new.get(section, {})]
            if any(key in after and before.get(key, _NEUTRAL[section].get(key)) != after[key] for key in touched):
                part |= {key: after[key] for key in touched if key in after}
        if part:
            changed[section] = part
    unified = {key: value for key, value in new.get("unified", {}).items() if old.get("unified", {}).get(key) != value}
    if unified:
        changed["unified"] = unified
    pages = [page for page in new.get("hugepageLimits", ()) if page not in old.get("hugepageLimits", ())]
    if pages:
        changed["hugepageLimits"] = pages
    return changed
