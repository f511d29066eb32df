"""Classes of block I/O: a file of the administrator, read once, as OCI ``linux.resources.blockIO`` objects. Blocking, for the start.

The file is TOML, or by its suffix YAML or JSON, with the keys that Intel's goresctrl (and so containerd and CRI-O) reads:
``[[Classes.NAME]]`` with ``Devices`` (paths, with wildcards), ``Weight``, ``ThrottleReadBps``, ``ThrottleWriteBps``,
``ThrottleReadIOPS`` and ``ThrottleWriteIOPS``. Sources: OCI config-linux.md "Block IO"; cgroup-v1/blkio-controller.rst.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge import log
from bridge.errors import ConfigError, HostError

_logger = log.get("host.blockio")
_RATES = {
    "throttlereadbps": "throttleReadBpsDevice",
    "throttlewritebps": "throttleWriteBpsDevice",
    "throttlereadiops": "throttleReadIOPSDevice",
    "throttlewriteiops": "throttleWriteIOPSDevice",
}
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_QUANTITY = re.compile(r"([0-9]+)([kMGT]|[KMGT]i)?")
_WEIGHTS = range(10, 1001)


Find = Callable[[str], list[tuple[int, int]]]
"""Wildcard pattern → numbers of the block devices behind it."""


def load(path: Path, find: Find | None = None) -> dict[str, dict[str, Any]]:
    """The classes by name; ``find`` looks for their devices (None: on this host). Raises ConfigError naming file, class and key."""
    try:
        document = _parsed(path)
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"blockio_config_file {path}: {exc}") from exc
    classes = _keys(document, f"{path}", "classes").get("classes", {})
    if not isinstance(classes, dict):
        raise ConfigError(f"blockio_config_file {path}: Classes must be a table")
    return {name: _class(f"{path}: class {name!r}", parts, find or block_devices) for name, parts in classes.items()}


def _parsed(path: Path) -> object:
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix not in (".yaml", ".yml"):
        return tomllib.loads(text)
    import yaml  # here, because few nodes have such a file: 5 MiB and 30 ms of a server's start

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(" ".join(str(exc).split())) from exc


def _keys(table: object, where: str, *known: str) -> dict[str, Any]:
    """A table with its keys in lower case, as goresctrl takes them in any."""
    if not isinstance(table, dict):
        raise ConfigError(f"blockio_config_file {where}: must be a table")
    lowered = {str(key).lower(): value for key, value in table.items()}
    if unknown := sorted(set(lowered) - set(known)):
        raise ConfigError(f"blockio_config_file {where}: unknown key {unknown[0]!r}")
    return lowered


def _class(where: str, parts: object, find: Find) -> dict[str, Any]:
    if not isinstance(parts, list):
        raise ConfigError(f"blockio_config_file {where}: must be a list of tables")
    result: dict[str, Any] = {}
    for part in parts:
        keys = _keys(part, where, "devices", "weight", *_RATES)
        devices = keys.get("devices")
        if devices is None:
            _general(where, keys, result)
            continue
        if not isinstance(devices, list) or not all(isinstance(each, str) and each.startswith("/") for each in devices):
            raise ConfigError(f"blockio_config_file {where}: Devices must be a list of absolute paths")
        _of_devices(where, keys, list(_numbers(where, devices, find)), result)
    return result


def _general(where: str, keys: Mapping[str, Any], result: dict[str, Any]) -> None:
    if set(keys) != {"weight"}:
        raise ConfigError(f"blockio_config_file {where}: a throttle needs Devices")
    result["weight"] = _weight(where, keys["weight"])


def _of_devices(where: str, keys: Mapping[str, Any], numbers: list[tuple[int, int]], result: dict[str, Any]) -> None:
    for major, minor in numbers:
        device = {"major": major, "minor": minor}
        if "weight" in keys:
            result.setdefault("weightDevice", []).append({**device, "weight": _weight(where, keys["weight"])})
        for key, name in _RATES.items():
            if key in keys:
                result.setdefault(name, []).append({**device, "rate": _quantity(where, keys[key])})


def _weight(where: str, value: object) -> int:
    weight = _quantity(where, value)
    if weight not in _WEIGHTS:
        raise ConfigError(f"blockio_config_file {where}: Weight {weight} is not between {_WEIGHTS[0]} and {_WEIGHTS[-1]}")
    return weight


def _quantity(where: str, value: object) -> int:
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ConfigError(f"blockio_config_file {where}: {value!r} is not a number such as 60M or 8Mi")
    return int(match[1]) * _UNITS[match[2] or ""]


def _numbers(where: str, patterns: Iterable[str], find: Find) -> Iterator[tuple[int, int]]:
    """The devices behind ``patterns``, each once. A pattern without one is worth a warning: hosts differ in their disks."""
    seen: set[tuple[int, int]] = set()
    for pattern in patterns:
        numbers = find(pattern)
        if not numbers:
            _logger.warning("blockio_config_file %s: %s is no block device of this host", where, pattern)
        for number in numbers:
            if number not in seen:
                seen.add(number)
                yield number


def block_devices(pattern: str) -> list[tuple[int, int]]:
    """Of this host. Raises HostError."""
    try:
        found = [os.stat(path) for path in sorted(glob.glob(pattern)) if os.path.exists(path)]
    except OSError as exc:
        raise HostError(f"{pattern}: {exc.strerror}", errno=exc.errno) from exc
    return [(os.major(each.st_rdev), os.minor(each.st_rdev)) for each in found if stat.S_ISBLK(each.st_mode)]
