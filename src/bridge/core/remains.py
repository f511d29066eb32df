"""What a pod's directory tells of the pod when no record does: its network namespace, and where its containers' cgroups are.

Only a server that uses the same run directory can have written it, so that what it names is beyond doubt this server's own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge.core.spec_inputs import SpecSettings
from bridge.errors import InvalidRequest
from bridge.host.cgroup_paths import CgroupDriver, of_cgroups_path

_ID = re.compile("[0-9a-f]{64}")
_PAUSE = "pause"


def is_id(name: str) -> bool:
    """Whether ``name`` looks like an id of ours (64 hexadecimal digits)."""
    return _ID.fullmatch(name) is not None


def bundles(sandbox_dir: Path) -> Iterator[tuple[str, Path]]:
    """(container id, bundle) of every bundle in a pod's directory, the pod's own process under the pod's id. Blocks."""
    for name in _names(sandbox_dir / "containers"):
        yield name, sandbox_dir / "containers" / name
    if (sandbox_dir / _PAUSE).is_dir():
        yield sandbox_dir.name, sandbox_dir / _PAUSE


def cgroups(sandbox_dir: Path, settings: SpecSettings) -> Sequence[str]:
    """The cgroups, from the root of their hierarchies, that its bundles name and that end in our prefix and the bundle's id. Blocks."""
    found = []
    for ident, bundle in bundles(sandbox_dir):
        linux = _spec(bundle).get("linux")
        path = linux.get("cgroupsPath") if isinstance(linux, dict) else None
        if isinstance(path, str) and path.replace(":", "-").endswith(f"{settings.cgroup_prefix}-{ident}"):
            try:
                found.append(of_cgroups_path(path, CgroupDriver.SYSTEMD if ":" in path else CgroupDriver.CGROUPFS))
            except InvalidRequest:
                continue  # then it is none that a runtime would have made
    return found


def netns(sandbox_dir: Path) -> Path | None:
    """The pin of its network namespace, None where it has none. Blocks."""
    pin = sandbox_dir / "ns" / "net"
    return pin if os.path.lexists(pin) else None


def _spec(bundle: Path) -> dict[str, Any]:
    try:
        found = json.loads((bundle / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
