"""What a runtime claims to be able to do: out of its ``features`` object, or its ``--version`` text where it has no such verb. Pure.

Sources: the OCI runtime spec's features.md; crun's ``--version`` flags (+SYSTEMD +SECCOMP …).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.ports.runtime import Ability

_FLAGS = {
    "SECCOMP": Ability.SECCOMP,
    "APPARMOR": Ability.APPARMOR,
    "SELINUX": Ability.SELINUX,
    "SYSTEMD": Ability.SYSTEMD_CGROUP,
    "CRIU": Ability.CHECKPOINT,
}
_CHECKPOINT_NOTE = "org.opencontainers.runc.checkpoint.enabled"


@dataclass(frozen=True, slots=True)
class Claims:
    """``version`` is one line; ``abilities`` holds what the runtime says about itself (absent: it says nothing); ``source`` where."""

    version: str
    abilities: Mapping[Ability, bool]
    source: str


def version_line(text: str) -> str:
    """The first line of ``--version``: "runc version 1.1.5"."""
    return text.strip().partition("\n")[0].strip()


def from_version(text: str) -> Claims:
    """Claims of a runtime without ``features``."""
    flags = set(re.findall(r"\+([A-Z]+)", text))
    known = {ability: flag in flags for flag, ability in _FLAGS.items()} if flags else {}
    return Claims(version_line(text), known, "--version")


def from_features(version_text: str, features: Mapping[str, Any]) -> Claims:
    """Claims out of a features object; a part that it leaves out is unknown, not absent."""
    linux = _table(features, "linux")
    found: dict[Ability, bool] = {}
    for ability, section, key in (
        (Ability.SECCOMP, "seccomp", "enabled"),
        (Ability.APPARMOR, "apparmor", "enabled"),
        (Ability.SELINUX, "selinux", "enabled"),
        (Ability.SYSTEMD_CGROUP, "cgroup", "systemd"),
    ):
        value = _table(linux, section).get(key)
        if isinstance(value, bool):
            found[ability] = value
    _from_lists(features, linux, found)
    return Claims(version_line(version_text), found, "features")


def _from_lists(features: Mapping[str, Any], linux: Mapping[str, Any], found: dict[Ability, bool]) -> None:
    namespaces, options = linux.get("namespaces"), features.get("mountOptions")
    if isinstance(namespaces, list):
        found[Ability.USER_NAMESPACES] = "user" in namespaces
    if isinstance(options, list):
        found[Ability.RECURSIVE_READ_ONLY] = "rro" in options
    idmap = _table(_table(linux, "mountExtensions"), "idmap").get("enabled")
    found[Ability.IDMAPPED_MOUNTS] = idmap is True  # younger than the verb: left out means no
    found[Ability.NET_DEVICES] = _table(linux, "netDevices").get("enabled") is True
    found[Ability.RDT_SCHEMATA] = _table(linux, "intelRdt").get("schemata") is True
    note = _table(features, "annotations").get(_CHECKPOINT_NOTE)
    if note is not None:
        found[Ability.CHECKPOINT] = note == "true"


def _table(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = source.get(key)
    return value if isinstance(value, dict) else {}
