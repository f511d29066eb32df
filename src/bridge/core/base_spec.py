"""A handler's base spec: an OCI runtime spec from the operator that a container's own is laid over. Pure.

What the request, the image or the pod decides is ours alone; what nobody asked for is the base's. docs/operations.md has the
whole table. Source: OCI config.md; the idea is containerd's base_runtime_spec.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.core.model import ContainerSecurity
from bridge.errors import ConfigError

Spec = dict[str, Any]

_OURS_PROCESS = ("args", "cwd", "terminal", "capabilities", "apparmorProfile", "selinuxLabel", "oomScoreAdj", "commandLine")
_OURS_LINUX = ("namespaces", "cgroupsPath", "seccomp", "mountLabel", "uidMappings", "gidMappings", "maskedPaths", "readonlyPaths")
_OURS = ("root", "hostname", "domainname")
_LISTS = {("mounts",): "destination", ("linux", "devices"): "path", ("process", "rlimits"): "type"}
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def parse(text: str) -> Spec:
    """A base spec from its file. Raises ConfigError naming the key that is wrong."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"is not JSON: {exc}") from exc
    if not isinstance(spec, dict):
        raise ConfigError("must hold a JSON object")
    for key in ("process", "linux", "hooks", "annotations"):
        _expect(isinstance(spec.get(key, {}), dict), key, "an object")
    linux, process = spec.get("linux", {}), spec.get("process", {})
    _expect(isinstance(linux.get("resources", {}), dict), "linux.resources", "an object")
    for (*parents, last), name in _LISTS.items():
        entries = (spec.get(parents[0], {}) if parents else spec).get(last, [])
        valid = isinstance(entries, list) and all(isinstance(entry, dict) and isinstance(entry.get(name), str) for entry in entries)
        _expect(valid, ".".join((*parents, last)), f"a list of objects with {name!r}")
    env = process.get("env", [])
    _expect(
        isinstance(env, list) and all(isinstance(one, str) and one.find("=") > 0 for one in env), "process.env", 'a list of "NAME=value"'
    )
    rules = linux.get("resources", {}).get("devices", [])
    _expect(isinstance(rules, list) and all(isinstance(rule, dict) for rule in rules), "linux.resources.devices", "a list of objects")
    for key in ("maskedPaths", "readonlyPaths"):
        paths = linux.get(key, [])
        _expect(
            isinstance(paths, list) and all(isinstance(one, str) and one.startswith("/") for one in paths), f"linux.{key}", "absolute paths"
        )
    for stage, hooks in spec.get("hooks", {}).items():
        valid = stage in _HOOKS and isinstance(hooks, list)
        valid = valid and all(isinstance(hook, dict) and str(hook.get("path", "")).startswith("/") for hook in hooks)
        _expect(valid, f"hooks.{stage}", "a stage of OCI with a list of hooks, each with an absolute path")
    return spec


def _expect(valid: bool, key: str, what: str) -> None:
    if not valid:
        raise ConfigError(f"{key}: must be {what}")


def lay_over(base: Mapping[str, Any], ours: Mapping[str, Any], request: ContainerSecurity, *, user_namespace: bool = False) -> Spec:
    """``ours`` over ``base``; neither is changed. ``request`` tells which of ours were asked for and which are mere defaults.

    In a ``user_namespace`` hidden paths are always asked for: none there means procMount Unmasked (see security.hidden_paths).
    """
    spec = _merged({key: value for key, value in base.items() if key not in _OURS}, ours)
    spec["ociVersion"] = max(str(base.get("ociVersion", "")), str(ours["ociVersion"]), key=_version)
    spec["process"] = _process(base.get("process", {}), ours["process"])
    spec["mounts"] = _mounts(base.get("mounts", ()), ours.get("mounts", ()))
    spec["linux"] = _linux(base.get("linux", {}), ours["linux"], request, user_namespace)
    if base.get("hooks") or ours.get("hooks"):
        stages = (base.get("hooks", {}), ours.get("hooks") or {})
        spec["hooks"] = {stage: [*stages[0].get(stage, ()), *stages[1].get(stage, ())] for stage in {**stages[0], **stages[1]}}
    return spec


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("-")[0].split(".") if part.isdigit())


def _merged(base: Mapping[str, Any], ours: Mapping[str, Any]) -> Spec:
    """Objects key by key, everything else ours where we say something."""
    merged = dict(base)
    for key, value in ours.items():
        under = base.get(key)
        merged[key] = _merged(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return merged


def _process(base: Mapping[str, Any], ours: Mapping[str, Any]) -> Spec:
    process = _merged({key: value for key, value in base.items() if key not in _OURS_PROCESS}, ours)
    env = {entry.partition("=")[0]: entry for entry in (*base.get("env", ()), *ours.get("env", ()))}
    process["env"] = list(env.values())
    # No request asks for limits: ours is only the server's own, passed on.
    rlimits = {limit["type"]: limit for limit in (*ours.get("rlimits", ()), *base.get("rlimits", ()))}
    if rlimits:
        process["rlimits"] = list(rlimits.values())
    process["noNewPrivileges"] = bool(base.get("noNewPrivileges")) or bool(ours.get("noNewPrivileges"))
    return process


def _mounts(base: Iterable[Mapping[str, Any]], ours: Iterable[Mapping[str, Any]]) -> list[Spec]:
    """By destination, ours first; a tmpfs on /run, which every generated spec has, would hide what the image has there."""
    found = {posixpath.normpath(mount["destination"]): dict(mount) for mount in base}
    if found.get("/run", {}).get("type") == "tmpfs":
        del found["/run"]
    for mount in ours:
        place = posixpath.normpath(mount["destination"])
        found.pop(place, None)
        found[place] = dict(mount)
    return sorted(found.values(), key=lambda mount: posixpath.normpath(mount["destination"]).count("/"))


def _linux(base: Mapping[str, Any], ours: Mapping[str, Any], request: ContainerSecurity, user_namespace: bool) -> Spec:
    linux = _merged({key: value for key, value in base.items() if key not in _OURS_LINUX}, ours)
    devices = {device["path"]: device for device in (*base.get("devices", ()), *ours.get("devices", ()))}
    if devices:
        linux["devices"] = list(devices.values())
    rules = base.get("resources", {}).get("devices", ())
    blanket, *allowed = ours["resources"]["devices"]
    # The last rule that fits counts: deny all, then the base's, then what was asked for.
    combined = [blanket, *(dict(rule) for rule in rules if not _is_blanket(rule)), *allowed]
    linux["resources"] = {**linux["resources"], "devices": combined}
    for key, asked in (("maskedPaths", request.masked_paths), ("readonlyPaths", request.readonly_paths)):
        if not (asked or request.privileged or user_namespace) and key in base:
            linux[key] = list(base[key])
    return linux


def _is_blanket(rule: Mapping[str, Any]) -> bool:
    return rule.get("type", "a") in ("", "a") and rule.get("major") in (None, -1) and rule.get("minor") in (None, -1)
