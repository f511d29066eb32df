"""What a probe found, kept for the same binary and settings: a restart of the server then runs nothing.

It is kept below the state root, which is gone at a reboot; a kernel is probed anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge.errors import HostError
from bridge.host import cgroups
from bridge.ports.abilities import Ability, Feature, RuntimeFeatures, Support


def surroundings(binary: Path) -> dict[str, Any]:
    """The part of an identity that is every runtime's: the file of its binary, and the hierarchies of cgroups. Blocks.

    Raises HostError when there is no such file.
    """
    try:
        status = os.stat(binary)
    except OSError as exc:
        raise HostError(f"{binary}: {exc.strerror}", errno=exc.errno) from exc
    cgroups.layout.cache_clear()  # a hierarchy may have been mounted to mend the handler
    return {
        "file": [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns],
        "hierarchies": {name: str(mount.point) for name, mount in cgroups.layout().mounts.items()},
    }


def load(cache: Path, identity: Mapping[str, Any]) -> tuple[RuntimeFeatures, Mapping[str, Any]] | None:
    """What ``save`` kept for this identity, with its ``more``; None when it must be probed again. Blocks."""
    try:
        kept = json.loads(cache.read_text())
        if kept["identity"] != identity:
            return None
        found = kept["features"]
        abilities = {Ability(name): Feature(Support(each["support"]), each["detail"]) for name, each in found["abilities"].items()}
        return RuntimeFeatures(found["version"], found["path"], abilities, tuple(found["annotations"])), dict(kept["more"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, damaged or of another version


def save(cache: Path, identity: Mapping[str, Any], features: RuntimeFeatures, **more: Any) -> None:
    """Keep ``features``, and what is JSON in ``more``, until the identity (JSON too) is another. Blocks."""
    fresh = cache.with_suffix(".new")
    fresh.write_text(json.dumps({"identity": identity, "features": asdict(features), "more": more}))
    fresh.replace(cache)
