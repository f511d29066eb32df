"""Cgroups of trials, the throw-away containers of handlers that are being opened, whose server was killed meanwhile.

A trial's cgroup lies at the top of the hierarchies, and its name carries the server's directories: of a server whose directories are
gone, as a private one's, none of that name is ever run again. With the systemd driver it is a scope, which systemd itself ends.
Everything blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from bridge.host import cgroups
from bridge.host.cgroup_paths import CgroupLayout

PREFIX = "cri-bridge-trial-"
OLD_SECONDS = 600.0
"""No trial takes so long, so that an empty cgroup of this age is not about to get its process."""


def abandoned(*, on: CgroupLayout | None = None) -> Sequence[str]:
    """Names of those that are old and without processes in every hierarchy, whichever server's they are. Raises HostError."""
    return sorted(name for name, places in _found(on or cgroups.layout()).items() if all(map(_old, places)) and not _used(places))


def remove(name: str, *, on: CgroupLayout | None = None) -> None:
    """Remove what ``abandoned`` found, in every hierarchy; absent is success. Raises TimedOut when it is used after all, HostError."""
    for directory in _found(on or cgroups.layout()).get(name, ()):
        cgroups.remove_directory(directory, timeout=0.0)


def _found(layout: CgroupLayout) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for point in {mount.point for mount in layout.mounts.values()}:
        for name in os.listdir(point) if point.is_dir() else ():
            if name.startswith(PREFIX):
                found.setdefault(name, []).append(point / name)
    return found


def _old(directory: Path) -> bool:
    try:
        return time.time() - directory.stat().st_mtime > OLD_SECONDS
    except FileNotFoundError:  # it is being removed at this moment, by whom it belongs to
        return False


def _used(places: Sequence[Path]) -> bool:
    return any(cgroups.pids(directory) for directory in places)
