"""CDI edits applied to an OCI spec, in the order and with the defaults of the specification's reference implementation."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.core.cdi_spec import Edits
from bridge.core.spec_devices import bind
from bridge.errors import HostError, InvalidRequest, NotFound
from bridge.host import devices

Spec = dict[str, Any]


async def completed(nodes: Iterable[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
    """The device nodes with type, numbers and mode looked up on the host where the spec leaves them out.

    A node that says its type and numbers need not exist. Raises InvalidRequest naming ``field`` for one that must and doesn't.
    """
    return [await _completed(node, field) for node in nodes]


async def _completed(node: Mapping[str, Any], field: str) -> dict[str, Any]:
    source = node.get("hostPath") or node["path"]
    full = {**node, "hostPath": source, "type": "c" if node.get("type") == "u" else node.get("type", "")}
    said = bool(full["type"]) and bool(node.get("major") or full["type"] == "p")
    try:
        found = await devices.exactly(Path(source))
    except (NotFound, HostError) as exc:
        if said:
            return full
        raise InvalidRequest(f"the CDI device node {node['path']} can't be made: {exc.message}", field=field) from exc
    full.setdefault("fileMode", found.mode)
    if said:
        return full
    if full["type"] not in ("", found.kind):
        raise InvalidRequest(
            f"the CDI device node {node['path']} is of type {full['type']}, but {source} of type {found.kind}", field=field
        )
    return {**full, "type": found.kind, "major": found.major, "minor": found.minor}


def apply(spec: Mapping[str, Any], edits: Edits, nodes: Sequence[Mapping[str, Any]], *, user_namespace: bool, id_mapped: bool) -> Spec:
    """``spec`` with ``edits``, whose device nodes are given ``completed``. Pure.

    With ``user_namespace`` a node whose path differs from the host's becomes a bind mount, as nobody can make nodes there, and
    with ``id_mapped`` bind mounts are asked to map their owners.
    """
    process, linux = dict(spec["process"]), dict(spec["linux"])
    process["env"] = _environment(process.get("env", ()), edits.env)
    if edits.gids:
        process["user"] = _user(process["user"], edits.gids)
    bound = [node for node in nodes if user_namespace and node["hostPath"] != node["path"]]
    made = [node for node in nodes if node not in bound]
    if made:
        linux["devices"] = _devices(linux.get("devices", ()), made, process["user"])
    if nodes:
        linux["resources"] = _rules(linux.get("resources") or {}, nodes)
    if edits.net_devices:
        moved = {device["hostInterfaceName"]: {"name": device["name"]} for device in edits.net_devices}
        linux["netDevices"] = {**linux.get("netDevices", {}), **moved}
    if edits.rdt is not None:
        linux["intelRdt"] = dict(edits.rdt)
    edited = {**spec, "process": process, "linux": linux}
    mounts = [bind(node["hostPath"], node["path"]) for node in bound]
    mounts += [_mount(mount, user_namespace and id_mapped) for mount in edits.mounts]
    if mounts:
        edited["mounts"] = _mounts(spec.get("mounts", ()), mounts)
    if edits.hooks:
        edited["hooks"] = with_hooks(spec.get("hooks") or {}, [(hook["hookName"], _hook(hook)) for hook in edits.hooks])
    return edited


def _environment(present: Iterable[str], added: Iterable[str]) -> list[str]:
    """A name that is there keeps its place and gets the new value; others follow."""
    env = {entry.partition("=")[0]: entry for entry in present}
    env.update((entry.partition("=")[0], entry) for entry in added)
    return list(env.values())


def _user(user: Mapping[str, Any], gids: Iterable[int]) -> dict[str, Any]:
    groups = list(user.get("additionalGids", ()))
    groups += [gid for gid in dict.fromkeys(gids) if gid and gid not in groups]
    return {**user, "additionalGids": groups}


def _devices(present: Iterable[Mapping[str, Any]], added: Iterable[Mapping[str, Any]], user: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A node owned by nobody in particular belongs to the container's user."""
    found = {device["path"]: dict(device) for device in present}
    for node in added:
        found.pop(node["path"], None)
        entry = {"path": node["path"], "type": node["type"]}
        if node["type"] != "p":
            entry |= {"major": node.get("major", 0), "minor": node.get("minor", 0)}
        if "fileMode" in node:
            entry["fileMode"] = node["fileMode"]
        for key in ("uid", "gid"):
            if key in node or user.get(key):
                entry[key] = node.get(key, user.get(key))
        found[node["path"]] = entry
    return list(found.values())


def _rules(resources: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A rule for each device but those with permissions "none": what no rule allows is denied already."""
    rules = [
        {
            "allow": True,
            "type": node["type"],
            "major": node.get("major", 0),
            "minor": node.get("minor", 0),
            "access": node.get("permissions") or "rwm",
        }
        for node in nodes
        if node["type"] != "p" and node.get("permissions") != "none"
    ]
    return {**resources, "devices": [*resources.get("devices", ()), *rules]}


def _mount(mount: Mapping[str, Any], id_mapped: bool) -> dict[str, Any]:
    options = list(mount.get("options", ()))
    entry: dict[str, Any] = {"destination": mount["containerPath"], "source": mount["hostPath"]}
    if mount.get("type") or {"bind", "rbind"} & set(options):
        entry["type"] = mount.get("type") or "bind"  # a dummy, but in user namespaces crun 1.8 fails without it
    if id_mapped and not {"idmap", "ridmap"} & set(options):
        if "rbind" in options:
            options.append("ridmap")
        elif "bind" in options or mount.get("type") == "bind":
            options.append("idmap")
    if options:
        entry["options"] = options
    return entry


def _mounts(present: Iterable[Mapping[str, Any]], added: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One that is there for the same place gives way; parents before children."""
    found = [dict(mount) for mount in present]
    for mount in added:
        found = [other for other in found if other["destination"] != mount["destination"]]
        found.append(dict(mount))
    return sorted(found, key=lambda mount: posixpath.normpath(mount["destination"]).count("/"))


def _hook(hook: Mapping[str, Any]) -> dict[str, Any]:
    return {key: hook[key] for key in ("path", "args", "env", "timeout") if key in hook}


def with_hooks(present: Mapping[str, Any], added: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """OCI ``hooks`` with each (stage, hook) at the end of its stage."""
    hooks = {stage: list(entries) for stage, entries in present.items()}
    for stage, hook in added:
        hooks.setdefault(stage, []).append(dict(hook))
    return hooks
