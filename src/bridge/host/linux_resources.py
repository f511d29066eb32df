"""OCI ``linux.resources`` objects: one laid over another, and what a new cgroup need not be told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
