"""A copy of a database in another file system, which outlives the loss or damage of the original: for the time until the next boot.

It is written by the original's writer thread, after the commit and after whoever waits was answered: it costs no caller time, and may
lack the last commit when the process was killed in between. It is never synced, as it lies where nothing outlives the machine. A copy
that can't be kept up to date is removed, as a wrong one is worse than none, and made anew later.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bridge import log
from bridge.errors import CorruptData, HostError

_logger = log.get("host.database")
_AGAIN_SECONDS = 30.0
_BELONGING = ("-wal", "-shm", "-journal")


class DatabaseCopy:
    """The copy at ``path``. Used by one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._not_before = 0.0

    def repeat(self, source: sqlite3.Connection, work: Iterable[Callable[[sqlite3.Connection], object]]) -> None:
        """Do to the copy what was done to ``source`` in one transaction; make the copy if there is none. Never raises."""
        try:
            if self._connection is None:
                if time.monotonic() >= self._not_before:
                    self._make(source)
                return
            self._connection.execute("BEGIN IMMEDIATE")
            for each in work:
                each(self._connection)
            self._connection.execute("COMMIT")
        except Exception as exc:  # noqa: BLE001 - the original is committed, and goes on without a copy
            _logger.error("the copy %s can't be kept, it is made again in %.0f s at the soonest: %s", self.path, _AGAIN_SECONDS, exc)
            self._give_up()

    def close(self) -> None:
        """Leave the copy where it is."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _make(self, source: sqlite3.Connection) -> None:
        fresh = self.path.with_name(f"{self.path.name}.new")
        remove(fresh)
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        source.execute("VACUUM INTO ?", (str(fresh),))
        for suffix in _BELONGING:  # they would be taken for the new one's
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        fresh.rename(self.path)
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript("BEGIN IMMEDIATE; COMMIT")  # its files are there from now on
        self._connection = connection

    def _give_up(self) -> None:
        self._not_before = time.monotonic() + _AGAIN_SECONDS
        with suppress(sqlite3.Error):
            self.close()
        self._connection = None
        with suppress(OSError):
            remove(self.path)


def remove(path: Path) -> None:
    """Delete a database file with all that belongs to it; absent is success. Raises OSError."""
    for suffix in ("", *_BELONGING):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def restore(copy: Path, path: Path) -> bool:
    """Write the copy's content to ``path``, where nothing may be; whether there was a copy. Blocks. Raises CorruptData, HostError."""
    if not copy.exists():
        return False
    fresh = path.with_name(f"{path.name}.new")
    try:
        remove(fresh)
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        source = sqlite3.connect(copy, isolation_level=None)
        try:
            found = source.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise CorruptData(f"the copy {copy} is damaged as well: {found}")
            source.execute("VACUUM INTO ?", (str(fresh),))
        finally:
            source.close()
        fresh.rename(path)
    except sqlite3.DatabaseError as exc:
        raise CorruptData(f"the copy {copy} can't be read: {exc}") from exc
    except OSError as exc:
        raise HostError(f"can't restore {path} from its copy: {exc.strerror}", errno=exc.errno) from exc
    return True
