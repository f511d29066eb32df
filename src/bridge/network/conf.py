"""CNI network configurations: parsing and checking, without I/O (CNI specification 1.1.0, section 1).

A ``.conflist`` holds a network with its list of plugins; a ``.conf`` or ``.json`` holds one plugin, which is read as a list
of one. Everything that the specification doesn't name is kept as it is and reaches the plugin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from bridge.errors import ConfigError

SUFFIXES = (".conf", ".conflist", ".json")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification that we speak, oldest first."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class PluginConf:
    """One plugin of a network. ``body`` is its whole configuration object, passed through unaltered but for the protocol's keys."""

    type: str
    capabilities: frozenset[str]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NetworkConf:
    """A checked network configuration.

    ``versions`` are those of the file that we speak too, oldest first, never empty. ``source`` names the file. With
    ``inlined_only`` false, further plugins may be loaded from the directory beside the file that bears the network's name.
    """

    name: str
    versions: tuple[str, ...]
    plugins: tuple[PluginConf, ...]
    source: str
    disable_check: bool = False
    disable_gc: bool = False
    inlined_only: bool = False

    @property
    def version(self) -> str:
        """The version to speak: the newest of the file's (section 1, "Version considerations")."""
        return self.versions[-1]

    def supports(self, capability: str) -> bool:
        """Whether any plugin declares ``capability``."""
        return any(capability in plugin.capabilities for plugin in self.plugins)

    def with_versions(self, versions: tuple[str, ...]) -> NetworkConf:
        """The same network restricted to ``versions`` (must not be empty)."""
        return replace(self, versions=versions)

    def with_plugins(self, more: Sequence[PluginConf]) -> NetworkConf:
        """The same network with ``more`` plugins at the end of its list."""
        return replace(self, plugins=(*self.plugins, *more))

    def to_object(self) -> Mapping[str, Any]:
        """A JSON-able configuration list that ``from_object`` reads back, at the one version that is in use."""
        return {
            "cniVersion": self.version,
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": [dict(plugin.body) for plugin in self.plugins],
        }


def at_least(version: str, floor: str) -> bool:
    """Whether ``version`` (one of VERSIONS) is ``floor`` or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(floor)


def parse_network(data: bytes, source: str) -> NetworkConf:
    """Parse the content of the file ``source``, whose suffix says what it holds. Raises ConfigError naming file and key.

    A list without ``plugins`` is accepted here (its plugins may come from a directory); the caller refuses an empty network.
    """
    raw = _load(data, source)
    if source.endswith(".conflist"):
        return from_object(raw, source)
    if "plugins" in raw:
        _fail(source, "plugins", "this is a list of plugins: give the file the suffix .conflist")
    plugin = _plugin(raw, source, "")
    return NetworkConf(_name(raw, source), _versions(raw, source), (plugin,), source, inlined_only=True)


def parse_plugin(data: bytes, source: str) -> PluginConf:
    """Parse one plugin's own file (``<conf dir>/<network name>/*.conf``). Raises ConfigError."""
    return _plugin(_load(data, source), source, "")


def from_object(raw: Mapping[str, Any], source: str) -> NetworkConf:
    """Check a configuration list that is JSON already. Raises ConfigError."""
    inlined_only = _flag(raw, "loadOnlyInlinedPlugins", source)
    plugins = raw.get("plugins")
    if plugins is None:
        if inlined_only:
            _fail(source, "plugins", "is required where loadOnlyInlinedPlugins is true")
        plugins = []
    elif not isinstance(plugins, list) or not plugins:
        _fail(source, "plugins", "must be a list with at least one plugin")
    return NetworkConf(
        name=_name(raw, source),
        versions=_versions(raw, source),
        plugins=tuple(_plugin(plugin, source, f"plugins[{index}].") for index, plugin in enumerate(plugins)),
        source=source,
        disable_check=_flag(raw, "disableCheck", source),
        disable_gc=_flag(raw, "disableGC", source),
        inlined_only=inlined_only,
    )


def _load(data: bytes, source: str) -> Mapping[str, Any]:
    try:
        raw = json.loads(data, parse_constant=lambda name: _fail(source, "", f"{name} is not JSON"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{source}: is not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        _fail(source, "", "must be a JSON object")
    return raw


def _name(raw: Mapping[str, Any], source: str) -> str:
    name = raw.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _fail(source, "name", "must be letters, digits, '_', '.', '-', and begin with a letter or digit")
    return name


def _versions(raw: Mapping[str, Any], source: str) -> tuple[str, ...]:
    # A file without any version is of 0.1.0, from before the key existed; every runtime reads it so.
    listed = raw.get("cniVersions", [])
    if not isinstance(listed, list):
        _fail(source, "cniVersions", "must be a list of versions")
    wanted = [*listed, raw["cniVersion"]] if raw.get("cniVersion") else list(listed) or [VERSIONS[0]]
    for version in wanted:
        if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
            _fail(source, "cniVersion", f"{version!r} is not a version such as 1.0.0")
    known = tuple(version for version in VERSIONS if version in wanted)
    if not known:
        _fail(source, "cniVersion", f"{', '.join(wanted)} is not a version we speak ({', '.join(VERSIONS)})")
    return known


def _flag(raw: Mapping[str, Any], key: str, source: str) -> bool:
    value = raw.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):  # libcni takes both spellings
        return value.lower() == "true"
    if not isinstance(value, bool):
        _fail(source, key, "must be true or false")
    return value


def _plugin(raw: object, source: str, where: str) -> PluginConf:
    if not isinstance(raw, dict):
        _fail(source, where.rstrip("."), "must be a JSON object")
    kind = raw.get("type")
    if not isinstance(kind, str) or not kind:
        _fail(source, f"{where}type", "is required: the name of the plugin's binary")
    if kind in (".", "..") or set(kind) & set("/\\\0"):
        _fail(source, f"{where}type", f"{kind!r} is not a file name")
    capabilities = raw.get("capabilities") or {}
    if not isinstance(capabilities, dict) or not all(isinstance(value, bool) for value in capabilities.values()):
        _fail(source, f"{where}capabilities", "must map names to true or false")
    return PluginConf(kind, frozenset(name for name, wanted in capabilities.items() if wanted), raw)


def _fail(source: str, key: str, problem: str) -> NoReturn:
    raise ConfigError(f"{source}: {key + ' ' if key else ''}{problem}")
