"""Where the CNI plugin host-local keeps the leases of the networks that a server uses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge.config import Config

_DEFAULT = Path("/var/lib/cni/networks")


def find(config: Config) -> Mapping[Path, str]:
    """Its directories, by the configurations in ``network.conf_dir``, with the names of their networks. Blocks."""
    found: dict[Path, str] = {}
    for file in sorted(config.network.conf_dir.glob("*.conf*")):
        try:
            document = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue  # the doctor tells of broken ones
        if isinstance(document, dict) and isinstance(document.get("name"), str):
            for directory in _directories(document):
                found[directory / document["name"]] = document["name"]
    return found


def _directories(document: Mapping[str, Any]) -> Iterator[Path]:
    plugins = document.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else [document]:
        ipam = plugin.get("ipam") if isinstance(plugin, dict) else None
        if isinstance(ipam, dict) and ipam.get("type") == "host-local":
            directory = ipam.get("dataDir")
            yield Path(directory) if isinstance(directory, str) and directory else _DEFAULT
