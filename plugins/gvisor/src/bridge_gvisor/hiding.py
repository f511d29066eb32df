"""Masked and read-only paths, which runsc ignores, as mounts. What is below /proc, /sys and /dev is gVisor's own and needs none.

Sources: OCI config-linux.md "Masked Paths" and "Readonly Paths".
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.errors import HostError, Unsupported

_OWN = ("/proc", "/sys", "/dev")
_FIELD = "config.linux.security_context"


def with_mounts(oci: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
    """``oci`` with mounts in the place of its masked and read-only paths; an empty file for them is made in ``bundle``. Blocks.

    Raises Unsupported for a path behind a symbolic link or on a volume, naming the field.
    """
    linux = dict(oci.get("linux", {}))
    root, taken = Path(oci["root"]["path"]), [mount["destination"] for mount in oci.get("mounts", ())]
    added = []
    for key, field in (("readonlyPaths", "readonly_paths"), ("maskedPaths", "masked_paths")):
        for path in linux.pop(key, ()):
            if not _is_own(path):
                added += _mount(root, path, taken, bundle, f"{_FIELD}.{field}", masked=key == "maskedPaths")
    mounts = [*oci.get("mounts", ()), *sorted(added, key=lambda mount: mount["destination"].count("/"))]
    return {**oci, "mounts": mounts, "linux": linux}


def without_own(oci: Mapping[str, Any]) -> dict[str, Any]:
    """``oci`` without the masked and read-only paths that need no mount."""
    linux = dict(oci.get("linux", {}))
    for key in ("readonlyPaths", "maskedPaths"):
        if key in linux:
            linux[key] = [path for path in linux[key] if not _is_own(path)]
    return {**oci, "linux": linux}


def _is_own(path: str) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in _OWN)


def _mount(root: Path, path: str, taken: Sequence[str], bundle: Path, field: str, *, masked: bool) -> list[dict[str, Any]]:
    clean = posixpath.normpath(path)
    if any(clean == place or clean.startswith(f"{place}/") for place in taken):
        raise Unsupported(f"{field}: {path!r} is on a volume, where this handler can't hide it")
    source = root / clean.lstrip("/")
    try:
        mode = os.lstat(source).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise HostError(f"{field}: {path!r}: {exc.strerror}", errno=exc.errno) from exc
    if stat.S_ISLNK(mode) or os.path.realpath(source.parent) != str(Path(os.path.realpath(root)) / clean.lstrip("/")).rpartition("/")[0]:
        raise Unsupported(f"{field}: {path!r} is behind a symbolic link, where this handler can't hide it")
    if not masked:
        return [{"destination": clean, "type": "bind", "source": str(source), "options": ["bind", "ro"]}]
    if stat.S_ISDIR(mode):
        return [{"destination": clean, "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}]
    empty = bundle / "masked"
    empty.touch(mode=0o400)
    return [{"destination": clean, "type": "bind", "source": str(empty), "options": ["bind", "ro"]}]
