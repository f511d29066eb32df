"""Opening the database of records, and what happens when it is damaged or gone: it is rebuilt from the copy that belongs to this boot.

``state.db`` lies on a disk that lasts. Its copy lies in the run directory, beside what it describes: as long as a pod can run, the copy
is there. So pods that run are adopted with all that was recorded of them, instead of being taken for orphans.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from anyio.to_thread import run_sync

from bridge import log
from bridge.core.store import MIGRATIONS
from bridge.errors import CorruptData
from bridge.host import database_copy
from bridge.host.database import Database

NAME = "state.db"
COPY = "state-copy.db"
_ASIDE = ".corrupt-"
_logger = log.get("core.store")


async def open_state(state_dir: Path, run_dir: Path) -> Database:
    """The database below ``state_dir``, kept in agreement with its copy below ``run_dir``. Raises HostError, ConfigError."""
    path, copy = state_dir / NAME, run_dir / COPY
    if not await run_sync(_is_there, path):
        await _rebuild(copy, path, "is gone")
    try:
        return await Database.open(path, MIGRATIONS, copy)
    except CorruptData as exc:
        aside = path.with_name(f"{path.name}{_ASIDE}{time.time_ns()}")
        _logger.error("%s is damaged and set aside as %s: %s", path, aside.name, exc)
        await run_sync(_set_aside, path, aside)
        await _rebuild(copy, path, "was damaged")
        return await Database.open(path, MIGRATIONS, copy)


def set_aside(state_dir: Path) -> list[Path]:
    """Damaged databases that were put away, oldest first. Blocks."""
    found = (path for path in state_dir.glob(f"{NAME}{_ASIDE}*") if path.name.removeprefix(f"{NAME}{_ASIDE}").isdigit())
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_there(path: Path) -> bool:
    """Whether it has content: a file that was cut to nothing is as good as gone."""
    wal = Path(f"{path}-wal")
    return any(each.exists() and each.stat().st_size for each in (path, wal))


def _set_aside(path: Path, aside: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        file = Path(f"{path}{suffix}")
        if file.exists():
            file.rename(f"{aside}{suffix}")


async def _rebuild(copy: Path, path: Path, why: str) -> None:
    try:
        await run_sync(database_copy.remove, path)  # what is left of a lost one would be taken for the new one's
        found = await run_sync(database_copy.restore, copy, path)
    except CorruptData as exc:
        _logger.error("%s %s, and can't be rebuilt: %s", path, why, exc)
        await run_sync(database_copy.remove, copy)
    else:
        if found:
            _logger.warning("%s %s: it was rebuilt from its copy %s, with %s", path, why, copy, await run_sync(_content, path))


def _content(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        pods, containers = (connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("sandboxes", "containers"))  # noqa: S608
    except sqlite3.Error as exc:
        raise CorruptData(f"{path}: {exc}") from exc
    finally:
        connection.close()
    return f"{pods} pods and {containers} containers"
