"""OCI documents: limits laid over others, what a new cgroup need not be told, the sandbox's PID namespace, and writing them down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.host.cgroup_paths import CgroupDriver, of_cgroups_path

_LISTS = {"hugepageLimits": "pageSize"}


def lifts_quota(resources: Mapping[str, Any]) -> bool:
    """Whether they say that there is to be no CPU quota."""
    return int(resources.get("cpu", {}).get("quota", 0)) < 0


def without_quota(resources: Mapping[str, Any]) -> dict[str, Any]:
    """``resources`` that say nothing of a quota: a new cgroup has none."""
    cpu = {key: value for key, value in resources.get("cpu", {}).items() if key != "quota"}
    rest = {key: value for key, value in resources.items() if key != "cpu"}
    return {**rest, "cpu": cpu} if cpu else rest


def at_start(oci: Mapping[str, Any]) -> Mapping[str, Any]:
    """``oci`` as runtimes start it: without limits that say "none", which is what a new cgroup has."""
    linux = oci.get("linux", {})
    if not lifts_quota(linux.get("resources", {})):
        return oci
    return {**oci, "linux": {**linux, "resources": without_quota(linux["resources"])}}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` limits with the ``new`` ones in their places."""
    result = dict(old)
    for section, value in new.items():
        if section in _LISTS:
            key = _LISTS[section]
            result[section] = list({each[key]: each for each in (*old.get(section, ()), *value)}.values())
        else:
            result[section] = {**old.get(section, {}), **value}
    return result


def with_pid_namespace(oci: Mapping[str, Any], placeholder: str, path: str) -> Mapping[str, Any]:
    """``oci`` with the sandbox's PID namespace in place of the placeholder."""
    linux = dict(oci.get("linux", {}))
    namespaces = linux.get("namespaces", ())
    if not any(namespace.get("path") == placeholder for namespace in namespaces):
        return oci
    linux["namespaces"] = [{**n, "path": path} if n.get("path") == placeholder else n for n in namespaces]
    return {**oci, "linux": linux}


def in_cgroupfs(oci: Mapping[str, Any]) -> Mapping[str, Any]:
    """``oci`` for a runtime that makes cgroups itself where the server has systemd do it: the path that slice:prefix:name stands for."""
    linux = oci.get("linux", {})
    path = linux.get("cgroupsPath", "")
    if path.count(":") != 2:
        return oci
    return {**oci, "linux": {**linux, "cgroupsPath": of_cgroups_path(path, CgroupDriver.SYSTEMD)}}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write compact JSON, readable by root alone from its first byte on: it holds secrets. Blocks: call from a worker thread."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, separators=(",", ":")))


def owns_pid_namespace(oci: Mapping[str, Any]) -> bool:
    """Whether a container with this spec has a PID namespace to itself."""
    found = oci.get("linux", {}).get("namespaces", ())
    return any(namespace.get("type") == "pid" and not namespace.get("path") for namespace in found)
