"""Opening the index, and what happens to a damaged one: it is set aside and the store starts empty.

What containers stand on may still be mounted then; so no directory is swept before the next boot.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from bridge import log
from bridge.errors import CorruptData
from bridge.host.database import Database
from bridge.images import disk, schema
from bridge.images.manifest import is_what_it_says

INDEX = "index.db"
_logger = log.get("images")


async def open_index(root: Path) -> Database:
    """The index of the store at ``root``. Raises HostError, ConfigError (written by a newer version)."""
    path = root / INDEX
    try:
        return await Database.open(path, schema.MIGRATIONS)
    except CorruptData as exc:
        _logger.error("%s; it is set aside and the store starts empty", exc)
        await disk.blocking(_set_aside, path)
    return await Database.open(path, schema.MIGRATIONS)


async def was_set_aside(root: Path) -> bool:
    """Whether a damaged index was set aside since this machine was booted. Raises HostError."""
    return await disk.blocking(_was_set_aside, root)


def faults(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with the index itself: its pages, its references, the documents in it. Blocks."""
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    found += [f"a row of {row[0]} refers to nothing in {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
    return found


def damaged_blobs(connection: sqlite3.Connection) -> list[str]:
    """The digests of manifests and configs that are not what their digest says. Blocks."""
    return [digest for digest, data in connection.execute("SELECT digest, data FROM blobs") if not is_what_it_says(digest, data)]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _was_set_aside(root: Path) -> bool:
    return any(root.glob(f"{INDEX}.damaged-{_boot_id()}*"))


def _set_aside(path: Path) -> None:
    aside = f"{path}.damaged-{_boot_id()}-{time.time_ns()}"
    for suffix in ("", "-wal", "-shm"):
        file = Path(f"{path}{suffix}")
        if file.exists():
            file.rename(f"{aside}{suffix}")
