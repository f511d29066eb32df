"""One CDI spec file: read, checked, made into edits. Source: CDI specification 1.1.0 (every version from 0.3.0 on).

A file that breaks a rule is unusable as a whole, with the reason; unknown fields break it too, as the specification says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bridge.core.cdi_shapes import Check, SpecFault, fields, integer, listed, text, texts, truth
from bridge.errors import ConfigError

ENDINGS = (".json", ".yaml")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_ANNOTATION = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ANNOTATION_BYTES = 256 << 10
_NODE_KINDS = ("", "b", "c", "u", "p")
_UINT32 = (1 << 32) - 1
_INT64 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Edits:
    """CDI containerEdits, each list in the file's order and each entry with the specification's own keys."""

    env: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] = ()
    net_devices: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    hooks: tuple[Mapping[str, Any], ...] = ()
    rdt: Mapping[str, Any] | None = None
    gids: tuple[int, ...] = ()

    def then(self, other: Edits) -> Edits:
        """These, then ``other``'s; of two intelRdt the later counts."""
        return Edits(
            self.env + other.env,
            self.nodes + other.nodes,
            self.net_devices + other.net_devices,
            self.mounts + other.mounts,
            self.hooks + other.hooks,
            self.rdt if other.rdt is None else other.rdt,
            self.gids + other.gids,
        )


@dataclass(frozen=True, slots=True)
class CdiSpec:
    """A valid file: ``kind`` is "vendor/class", ``edits`` go with any of its devices, ``rank`` is its directory's priority."""

    path: Path
    rank: int
    kind: str
    devices: Mapping[str, Edits] = field(default_factory=dict)
    edits: Edits = field(default_factory=Edits)


def is_qualified(name: str) -> bool:
    """Whether ``name`` has the form vendor/class=device."""
    kind, found, device = name.partition("=")
    vendor, slash, category = kind.partition("/")
    return bool(found and slash and _NAME.fullmatch(vendor) and _NAME.fullmatch(category) and _DEVICE.fullmatch(device))


def parse(path: Path, rank: int, data: bytes) -> CdiSpec:
    """The spec in ``data``: YAML if the path says so, else JSON. Raises ConfigError with the reason."""
    try:
        given = fields(
            _load(path, data),
            "",
            {
                "cdiVersion": text,
                "kind": text,
                "annotations": _annotations,
                "devices": listed(_device),
                "containerEdits": _edits,
            },
            required=("cdiVersion", "kind", "devices"),
        )
        version = _version(given["cdiVersion"])
        _check_kind(given["kind"])
        devices = _by_name(given["devices"])
        _check_version(version, given)
    except SpecFault as exc:
        raise ConfigError(str(exc)) from exc
    return CdiSpec(path, rank, given["kind"], devices, given.get("containerEdits") or Edits())


def _load(path: Path, data: bytes) -> Any:
    try:
        if path.suffix == ".yaml":
            return _load_yaml(data)
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise SpecFault(f"is not JSON: {exc}") from exc


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SpecFault(f"a key occurs twice: {next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)!r}")
    return found


def _load_yaml(data: bytes) -> Any:
    import yaml  # here, because only nodes with YAML specs need it: 5 MiB and 30 ms of a server's start

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # which of the two is known at run time
        pass

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        loader.flatten_mapping(node)
        return _unique([(loader.construct_object(key, deep=True), loader.construct_object(value, deep=True)) for key, value in node.value])

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(data, Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, TypeError) as exc:
        raise SpecFault(f"is not YAML: {' '.join(str(exc).split())}") from exc


def _version(given: str) -> int:
    plain = given.removeprefix("v")
    if plain not in VERSIONS:
        raise SpecFault(f"cdiVersion: {given!r} is none of {', '.join(VERSIONS)}")
    return VERSIONS.index(plain)


def _check_kind(kind: str) -> None:
    vendor, slash, category = kind.partition("/")
    if not (slash and _NAME.fullmatch(vendor) and _NAME.fullmatch(category)):
        raise SpecFault(f"kind: {kind!r} is not of the form vendor/class")


def _by_name(devices: Sequence[Mapping[str, Any]]) -> dict[str, Edits]:
    found: dict[str, Edits] = {}
    for index, device in enumerate(devices):
        if not _DEVICE.fullmatch(device["name"]):
            raise SpecFault(f"devices[{index}].name: {device['name']!r} is no name of a device")
        if device["name"] in found:
            raise SpecFault(f"devices[{index}].name: {device['name']!r} occurs twice")
        edits = device.get("containerEdits") or Edits()
        if edits == Edits():
            raise SpecFault(f"devices[{index}].containerEdits: is empty")
        found[device["name"]] = edits
    if not found:
        raise SpecFault("devices: is empty")
    return found


def _annotations(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise SpecFault(f"{where}: must map strings to strings")
    for key in value:
        if not _ANNOTATION.fullmatch(key.lower()):
            raise SpecFault(f"{where}: {key!r} is no name of an annotation")
    if sum(len(key) + len(item) for key, item in value.items()) > _ANNOTATION_BYTES:
        raise SpecFault(f"{where}: is larger than {_ANNOTATION_BYTES} bytes")
    return value


def _device(value: Any, where: str) -> dict[str, Any]:
    known = {"name": text, "annotations": _annotations, "containerEdits": _edits}
    return fields(value, where, known, required=("name", "containerEdits"))


def _edits(value: Any, where: str) -> Edits:
    gid = partial(integer, least=0, most=_UINT32)
    known = {
        "env": _environment,
        "deviceNodes": listed(_node),
        "netDevices": listed(_net_device),
        "mounts": listed(_mount),
        "hooks": listed(_hook),
        "intelRdt": _rdt,
        "additionalGids": listed(gid),
    }
    given = fields(value, where, known)
    net_devices = given.get("netDevices", ())
    for key in ("hostInterfaceName", "name"):
        if len({device[key] for device in net_devices}) != len(net_devices):
            raise SpecFault(f"{where}.netDevices: two have the same {key}")
    return Edits(
        env=tuple(given.get("env", ())),
        nodes=tuple(given.get("deviceNodes", ())),
        net_devices=tuple(net_devices),
        mounts=tuple(given.get("mounts", ())),
        hooks=tuple(given.get("hooks", ())),
        rdt=given.get("intelRdt"),
        gids=tuple(given.get("additionalGids", ())),
    )


def _environment(value: Any, where: str) -> list[str]:
    for index, entry in enumerate(texts(value, where)):
        if entry.find("=") <= 0 or "\0" in entry:
            raise SpecFault(f"{where}[{index}]: {entry!r} is not NAME=value")
    return list(value)


def _path(value: Any, where: str) -> str:
    if not text(value, where).startswith("/") or "\0" in value:
        raise SpecFault(f"{where}: {value!r} is not an absolute path")
    return str(value)


def _node(value: Any, where: str) -> dict[str, Any]:
    number = partial(integer, least=-_INT64 - 1, most=_INT64)
    unsigned = partial(integer, least=0, most=_UINT32)
    known: dict[str, Check] = {"path": _path, "hostPath": _path, "type": text, "major": number, "minor": number, "permissions": text}
    node = fields(value, where, {**known, "fileMode": unsigned, "uid": unsigned, "gid": unsigned}, required=("path",))
    if node.get("type", "") not in _NODE_KINDS:
        raise SpecFault(f"{where}.type: {node['type']!r} is none of b, c, u, p")
    permissions = node.get("permissions", "")
    if permissions != "none" and not set(permissions) <= set("rwm"):
        raise SpecFault(f"{where}.permissions: {permissions!r} is not made of r, w and m")
    return node


def _net_device(value: Any, where: str) -> dict[str, Any]:
    device = fields(value, where, {"hostInterfaceName": text, "name": text}, required=("hostInterfaceName", "name"))
    for key, name in device.items():
        if not name:
            raise SpecFault(f"{where}.{key}: is empty")
    return device


def _mount(value: Any, where: str) -> dict[str, Any]:
    mount = fields(
        value,
        where,
        {"hostPath": text, "containerPath": _path, "options": texts, "type": text},
        required=("hostPath", "containerPath"),
    )
    if not mount["hostPath"]:
        raise SpecFault(f"{where}.hostPath: is empty")
    return mount


def _hook(value: Any, where: str) -> dict[str, Any]:
    seconds = partial(integer, least=1, most=_UINT32)
    known: dict[str, Check] = {"hookName": text, "path": _path, "args": texts, "env": _environment, "timeout": seconds}
    hook = fields(value, where, known, required=("hookName", "path"))
    if hook["hookName"] not in HOOKS:
        raise SpecFault(f"{where}.hookName: {hook['hookName']!r} is none of {', '.join(HOOKS)}")
    return hook


def _rdt(value: Any, where: str) -> dict[str, Any]:
    known = {"closID": text, "l3CacheSchema": text, "memBwSchema": text, "schemata": texts, "enableMonitoring": truth}
    rdt = fields(value, where, known)
    name = rdt.get("closID", "")
    if name != "/" and (len(name) >= 4096 or name in (".", "..") or "/" in name or "\n" in name):
        raise SpecFault(f"{where}.closID: {name!r} is no file name")
    return rdt


def _check_version(version: int, given: Mapping[str, Any]) -> None:
    """Each feature needs the version that brought it."""
    devices = given["devices"]
    all_edits = [given.get("containerEdits") or Edits(), *(device["containerEdits"] for device in devices)]
    rdts = [edits.rdt for edits in all_edits if edits.rdt is not None]
    uses = {
        "1.1.0": any(rdt.get("schemata") is not None or rdt.get("enableMonitoring") for rdt in rdts)
        or any(edits.net_devices for edits in all_edits),
        "0.7.0": bool(rdts) or any(edits.gids for edits in all_edits),
        "0.6.0": "." in given["kind"].partition("/")[2] or any(owner.get("annotations") for owner in (given, *devices)),
        "0.5.0": any(device["name"][0].isdigit() for device in devices)
        or any(node.get("hostPath") for edits in all_edits for node in edits.nodes),
        "0.4.0": any(mount.get("type") for edits in all_edits for mount in edits.mounts),
        "0.3.0": True,
    }
    least = next(name for name, used in uses.items() if used)
    if version < VERSIONS.index(least):
        raise SpecFault(f"cdiVersion: what it uses needs at least {least}")
