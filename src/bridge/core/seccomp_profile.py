"""A seccomp profile from a file, made into an OCI ``linux.seccomp`` object for one container.

Two dialects are in use under the same name: OCI's own, and Docker's, which adds ``archMap`` and, per rule, ``includes`` and
``excludes`` by capability and architecture. A runtime would ignore the additions and apply every rule, so they are
resolved here. Source: OCI config-linux.md "Seccomp"; the documented format of Docker's profiles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bridge.errors import InvalidRequest

_ARCHITECTURES = {
    "386": "SCMP_ARCH_X86",
    "amd64": "SCMP_ARCH_X86_64",
    "arm": "SCMP_ARCH_ARM",
    "arm64": "SCMP_ARCH_AARCH64",
    "loong64": "SCMP_ARCH_LOONGARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}
_DOCKER_ONLY = frozenset({"includes", "excludes", "comment", "name"})


def resolve(profile: Mapping[str, Any], architecture: str, capabilities: Collection[str], field: str) -> dict[str, Any]:
    """The profile for a container with these bounding capabilities on this Go architecture. Raises InvalidRequest."""
    if not isinstance(profile.get("defaultAction"), str):
        raise InvalidRequest("the profile has no defaultAction", field=field)
    rules = profile.get("syscalls") or []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidRequest("the profile's syscalls are not a list of objects", field=field)
    resolved = {key: value for key, value in profile.items() if key not in ("archMap", "syscalls", "comment")}
    resolved["syscalls"] = [
        _plain(rule, index, field) for index, rule in enumerate(rules) if _applies(rule, architecture, frozenset(capabilities))
    ]
    architectures = _mapped(profile.get("archMap") or [], architecture)
    if architectures:
        resolved["architectures"] = architectures
    return resolved


def _applies(rule: Mapping[str, Any], architecture: str, capabilities: frozenset[str]) -> bool:
    """All of the included capabilities and one of the architectures are needed; any of the excluded ones is too much."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    wanted = includes.get("arches") or ()
    if wanted and architecture not in wanted:
        return False
    return not (capabilities.intersection(excludes.get("caps") or ()) or architecture in (excludes.get("arches") or ()))


def _plain(rule: Mapping[str, Any], index: int, field: str) -> dict[str, Any]:
    names = rule.get("names") or ([rule["name"]] if rule.get("name") else [])
    if not names or not isinstance(rule.get("action"), str):
        raise InvalidRequest(f"the profile's syscalls[{index}] lacks names or action", field=field)
    return {"names": list(names), **{key: value for key, value in rule.items() if key not in _DOCKER_ONLY and key != "names" and value}}


def _mapped(arch_map: list[Mapping[str, Any]], architecture: str) -> list[str]:
    native = _ARCHITECTURES.get(architecture)
    for entry in arch_map:
        if entry.get("architecture") == native and native:
            return [native, *(entry.get("subArchitectures") or ())]
    return []
