"""The OCI ``linux.resources`` object, cgroup paths and the OOM score. Sources: CRI v1 LinuxContainerResources, OCI config-linux.md.

The limits themselves are in ``limits``.
"""

from __future__ import annotations

import posixpath
from functools import lru_cache
from typing import Any

from bridge import log
from bridge.core import limits, spec_devices
from bridge.core.limits import RESOURCES
from bridge.core.model import Resources
from bridge.core.spec_inputs import CGROUPFS, SYSTEMD, DeviceNode, SpecSettings
from bridge.errors import ConfigError, InvalidRequest
from bridge.host import cgroup_paths
from bridge.host.cgroup_paths import CgroupDriver
from bridge.host.facts import HostFacts

_logger = log.get("core.spec")
_PARENT = "config.linux.cgroup_parent"
_NAME_MAX = 255


def build(
    request: Resources | None, devices: tuple[DeviceNode, ...], privileged: bool, facts: HostFacts, settings: SpecSettings
) -> dict[str, Any]:
    """Limits and device rules of one container. Raises InvalidRequest or Unsupported naming the field."""
    resources: dict[str, Any] = {"devices": spec_devices.rules(devices, privileged), **limits.build(request or Resources(), facts)}
    if settings.pids_limit > 0:
        resources["pids"] = {"limit": settings.pids_limit}
    elif settings.cgroup_driver == SYSTEMD:  # unsaid, a scope gets DefaultTasksMax: 15 % of what the host has
        resources["pids"] = {"limit": -1}
    return resources


def oom_score_adj(wanted: int, facts: HostFacts) -> int:
    """The score to give, never lower than the server may set; always set, or the monitor's own would be inherited."""
    if not -1000 <= wanted <= 1000:
        raise InvalidRequest(f"{wanted} is not between -1000 and 1000", field=f"{RESOURCES}.oom_score_adj")
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
    clean = pod_cgroup(driver, parent)
    if driver == CGROUPFS:
        return posixpath.join(clean, f"{prefix}-{identifier}")
    return f"{posixpath.basename(clean)}:{prefix}:{identifier}"


def pod_cgroup(driver: str, parent: str) -> str:
    """The pod's cgroup as a path from the hierarchies' root. Raises InvalidRequest for a ``cgroup_parent`` that can't be one."""
    if not parent.isprintable() or ":" in parent:
        raise InvalidRequest(f"{parent!r} has characters that a cgroup's path can't have", field=_PARENT)
    if any(len(part.encode()) > _NAME_MAX for part in parent.split("/")):
        raise InvalidRequest(f"a part of {parent[:80]!r} is longer than {_NAME_MAX} bytes", field=_PARENT)
    return cgroup_paths.pod_cgroup(parent, CgroupDriver(driver))
