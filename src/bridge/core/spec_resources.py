"""The OCI ``linux.resources`` object, cgroup paths and the OOM score. Sources: CRI v1 LinuxContainerResources, OCI config-linux.md.

Memory in bytes, CPU period and quota in microseconds. 0 or "" in a request means "leave it alone".
"""

from __future__ import annotations

import posixpath
from functools import lru_cache
from typing import Any

from bridge import log
from bridge.core.model import Resources
from bridge.core.spec_inputs import CGROUPFS, SYSTEMD, DeviceNode, SpecSettings
from bridge.errors import ConfigError, InvalidRequest, Unsupported
from bridge.host.facts import HostFacts

_logger = log.get("core.spec")
_RESOURCES = "config.linux.resources"


def build(
    request: Resources | None, devices: tuple[DeviceNode, ...], privileged: bool, facts: HostFacts, settings: SpecSettings
) -> dict[str, Any]:
    """Limits of one container. Raises InvalidRequest or Unsupported naming the field."""
    wanted = request or Resources()
    resources: dict[str, Any] = {"devices": _device_rules(devices, privileged)}
    if memory := _memory(wanted, facts):
        resources["memory"] = memory
    if cpu := _cpu(wanted):
        resources["cpu"] = cpu
    if settings.pids_limit > 0:
        resources["pids"] = {"limit": settings.pids_limit}
    elif settings.cgroup_driver == SYSTEMD:  # unsaid, a scope gets DefaultTasksMax: 15 % of what the host has
        resources["pids"] = {"limit": -1}
    if hugepages := _hugepages(wanted, facts):
        resources["hugepageLimits"] = hugepages
    if wanted.unified:
        resources["unified"] = _unified(wanted, facts)
    return resources


def _memory(wanted: Resources, facts: HostFacts) -> dict[str, int]:
    """Limit, and memory+swap where it is accounted: as asked, else equal to the limit, so that a limit is a limit."""
    for name, least in (("memory_limit_in_bytes", 0), ("memory_swap_limit_in_bytes", -1)):
        if getattr(wanted, name) < least:
            raise InvalidRequest(f"is below {least}", field=f"{_RESOURCES}.{name}")
    memory: dict[str, int] = {}
    if wanted.memory_limit_in_bytes:
        memory["limit"] = wanted.memory_limit_in_bytes
    if facts.swap_accounting:
        swap = wanted.memory_swap_limit_in_bytes or wanted.memory_limit_in_bytes
        if 0 < swap < wanted.memory_limit_in_bytes:
            raise InvalidRequest("is below memory_limit_in_bytes", field=f"{_RESOURCES}.memory_swap_limit_in_bytes")
        if swap:
            memory["swap"] = swap
    return memory


def _cpu(wanted: Resources) -> dict[str, int | str]:
    for name, least in (("cpu_shares", 0), ("cpu_period", 0), ("cpu_quota", -1)):
        if getattr(wanted, name) < least:
            raise InvalidRequest(f"is below {least}", field=f"{_RESOURCES}.{name}")
    values: dict[str, int | str] = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    return {key: value for key, value in values.items() if value}


def _hugepages(wanted: Resources, facts: HostFacts) -> list[dict[str, Any]]:
    """The kubelet sends a limit of 0 for each size it knows; where no controller can hold it there is nothing to limit."""
    limits = []
    for index, (size, limit) in enumerate(wanted.hugepage_limits):
        if size in facts.hugepage_sizes:
            limits.append({"pageSize": size, "limit": limit})
        elif limit:
            raise Unsupported(f"{_RESOURCES}.hugepage_limits[{index}]: this host can't limit hugepages of {size!r}")
    return limits


def _unified(wanted: Resources, facts: HostFacts) -> dict[str, str]:
    if not facts.cgroup_v2:
        raise Unsupported(f"{_RESOURCES}.unified: this host has no cgroup v2")
    for key in wanted.unified:
        # A key is a file name in the container's cgroup: anything else could reach another cgroup.
        if not key or "/" in key or key.startswith((".", "cgroup.")) or "." not in key:
            raise InvalidRequest(f"{key!r} is not a controller's file", field=f"{_RESOURCES}.unified")
    return dict(wanted.unified)


def _device_rules(devices: tuple[DeviceNode, ...], privileged: bool) -> list[dict[str, Any]]:
    """Deny all, then what was asked for; the runtime adds the default devices (null, zero, tty …) that OCI makes its duty."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": d.kind, "major": d.major, "minor": d.minor, "access": d.permissions} for d in devices]
    return rules


def oom_score_adj(wanted: int, facts: HostFacts) -> int:
    """The score to give, never lower than the server may set; always set, or the monitor's own would be inherited."""
    if not -1000 <= wanted <= 1000:
        raise InvalidRequest(f"{wanted} is not between -1000 and 1000", field=f"{_RESOURCES}.oom_score_adj")
    if wanted < facts.oom_score_adj and not facts.can_lower_oom_score:
        _note_clamped(facts.oom_score_adj)
        return facts.oom_score_adj
    return wanted


@lru_cache(maxsize=1)
def _note_clamped(own: int) -> None:
    _logger.info("containers that ask for an OOM score below %d get %d: the server lacks CAP_SYS_RESOURCE", own, own)


def cgroups_path(driver: str, parent: str, prefix: str, identifier: str) -> str:
    """OCI linux.cgroupsPath: ``/parent/prefix-id`` for cgroupfs, ``slice:prefix:id`` for systemd (runc's convention).

    ``parent`` is the pod's cgroup as the kubelet names it: a path, for systemd one whose last part is a slice; "" means the
    root, or system.slice. Raises InvalidRequest for a parent that leaves its hierarchy or is no slice.
    """
    if driver not in (CGROUPFS, SYSTEMD):
        raise ConfigError(f"cgroup_driver is {driver!r}: it must be {CGROUPFS!r} or {SYSTEMD!r}")
    if "\0" in parent or ".." in parent.split("/"):
        raise InvalidRequest(f"{parent!r} is not a plain path", field="config.linux.cgroup_parent")
    if driver == CGROUPFS:
        return posixpath.normpath(f"/{parent.strip('/')}/{prefix}-{identifier}").replace("//", "/")
    name = posixpath.basename(parent.rstrip("/")) or "system.slice"
    if not name.endswith(".slice") or ":" in name:
        raise InvalidRequest(f"{parent!r} doesn't end in a systemd slice", field="config.linux.cgroup_parent")
    return f"{name}:{prefix}:{identifier}"
