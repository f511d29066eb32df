"""A root directory that holds one static binary, for a process that needs nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.errors import HostError

_MOUNT_POINTS = ("proc", "dev", "sys")
_BINARY = "pause"


async def make(root: Path, candidates: Sequence[Path]) -> Path | None:
    """Copy the first candidate that exists to ``root``/pause; returns which one it was, None when there is none.

    A copy that is there already and equal in size and time is kept, for it may be running. Raises HostError.
    """
    return await run_sync(_make, root, candidates)


def _make(root: Path, candidates: Sequence[Path]) -> Path | None:
    source = next((path for path in candidates if path.is_file()), None)
    if source is None:
        return None
    try:
        for name in _MOUNT_POINTS:
            (root / name).mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        _copy(source, root / _BINARY)
    except OSError as exc:
        raise HostError(f"the root of the pause process {root} can't be made: {exc}", errno=exc.errno) from exc
    return source


def _copy(source: Path, target: Path) -> None:
    wanted = source.stat()
    if target.exists():
        have = target.stat()
        if (have.st_size, have.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, fresh)
    fresh.chmod(0o755)
    fresh.rename(target)
