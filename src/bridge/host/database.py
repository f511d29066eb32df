"""SQLite behind one writer thread with group commit.

Every write is a function of a connection. One thread runs them in the order they were asked for; those that queue up while a
commit is under way share the next transaction, each behind its own savepoint, so that a failing one undoes only itself. Readers
have their own connection: a reader sees every write whose ``write`` has returned. The file is in WAL mode with
synchronous=NORMAL: ``kill -9`` loses nothing, a power cut may lose the newest commits but never damages older ones.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio.to_thread

from bridge.errors import AlreadyExists, BridgeError, ConfigError, CorruptData, HostError, InUse, Unavailable
from bridge.host.database_copy import DatabaseCopy

T = TypeVar("T")

_BUSY_MS = 5000
_MAX_BATCH = 256
_DUPLICATE = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(eq=False, slots=True)
class _Job(Generic[T]):
    """One queued write. ``future`` lives in ``loop``; the outcome is set there after the commit."""

    fn: Callable[[sqlite3.Connection], T]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    result: T | None = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():  # its caller was cancelled; the write has happened all the same
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


def _translate(exc: sqlite3.Error, path: Path) -> BridgeError:
    code = getattr(exc, "sqlite_errorcode", 0) or 0
    if code in _DUPLICATE:
        return AlreadyExists(f"{path.name}: {exc}")
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return InUse(f"{path.name}: {exc}")
    if code & 0xFF in _DAMAGED:
        return CorruptData(f"{path} is damaged: {exc}")
    return HostError(f"database {path}: {exc}", errno=errno.ENOSPC if code == sqlite3.SQLITE_FULL else None)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise _translate(exc, path) from exc


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise ConfigError(f"{path} was written by a newer cri-bridge (format {version}; this one knows up to {len(migrations)})")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise CorruptData(f"{path} is damaged: {found}")
    for number, script in enumerate(migrations[version:], version + 1):
        # executescript commits what is open, so the transaction must be part of the script.
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version={number};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _run_batch(connection: sqlite3.Connection, jobs: Sequence[_Job[Any]]) -> None:
    """Run ``jobs`` in one transaction and leave each one's result or error in it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                job.result = job.fn(connection)
            except BaseException as exc:  # noqa: BLE001 - it belongs to the one who asked for this write
                job.error = exc
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except sqlite3.Error as exc:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        for job in jobs:
            job.error = job.error or exc


class Database:
    """One SQLite file. Open it with ``await Database.open(...)``; use as an async context manager or call ``close``."""

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, copy: DatabaseCopy | None = None) -> None:
        self.path = path
        self._copy = copy
        self._writer = writer
        self._reader = reader
        self._reading = threading.Lock()
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closing = False
        # Transactions, and how many of them are known to be on the disk; what an earlier process left in the log counts as one.
        self._committed, self._synced = 1, 0
        self._thread = threading.Thread(target=self._serve, name=f"database {path.name}", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str], copy: Path | None = None) -> Self:
        """Open or make ``path`` (mode 0600) and bring it to the newest of ``migrations``.

        Each migration is an SQL script and runs in its own transaction with the new ``user_version``; the list only ever
        grows at its end. ``copy`` is where a second file with the same content is kept (see bridge.host.database_copy); ``fn`` of each
        write is then called twice. Raises ConfigError for a file of a newer version, CorruptData for a damaged one, HostError.
        """
        return await anyio.to_thread.run_sync(functools.partial(cls._open, path, migrations, copy))

    @classmethod
    def _open(cls, path: Path, migrations: Sequence[str], copy: Path | None) -> Self:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise HostError(f"can't open the database {path}: {exc.strerror}", errno=exc.errno) from exc
        with _translated(path):
            writer = _connect(path)
            try:
                _migrate(writer, path, migrations)
                reader = _connect(path)
            except BaseException:
                writer.close()
                raise
            reader.execute("PRAGMA query_only=ON")
        made = None if copy is None else DatabaseCopy(copy)
        if made is not None:
            made.repeat(writer, ())
        return cls(path, writer, reader, made)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` in the writer thread inside a transaction; return its result once that is committed.

        What ``fn`` raises undoes its own statements and reaches only this caller; sqlite3 errors arrive as AlreadyExists
        (unique constraint), InUse (foreign key), CorruptData or HostError. ``fn`` must not commit. A cancelled caller only
        leaves: the write still happens. Raises Unavailable after ``close``.
        """
        if self._closing:
            raise Unavailable(f"the database {self.path.name} is closed")
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(fn, loop, loop.create_future())
        self._queue.put(job)
        with _translated(self.path):
            return await job.future

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` on the read-only connection in a worker thread. Sees every write that has returned."""
        if self._closing:
            raise Unavailable(f"the database {self.path.name} is closed")
        with _translated(self.path):
            return await anyio.to_thread.run_sync(self._read, fn)

    def _read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            return fn(self._reader)

    async def sync(self) -> None:
        """Have everything that was written on the disk when this returns: synchronous=NORMAL alone leaves that to the next checkpoint.

        Costs nothing when that is so already. Raises HostError.
        """
        count = self._committed
        if count <= self._synced:
            return
        try:
            await anyio.to_thread.run_sync(_sync, Path(f"{self.path}-wal"))
        except OSError as exc:
            raise HostError(f"database {self.path}: {exc.strerror}", errno=exc.errno) from exc
        self._synced = max(self._synced, count)

    async def close(self) -> None:
        """Commit what is queued and close the file. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        with anyio.CancelScope(shield=True):  # bounded: the queue no longer grows
            await anyio.to_thread.run_sync(self._thread.join)
            await anyio.to_thread.run_sync(self._close_reader)

    def _close_reader(self) -> None:
        with self._reading:
            self._reader.close()

    def _serve(self) -> None:
        last = False
        while not last:
            jobs: list[_Job[Any]] = []
            item = self._queue.get()
            while item is not None:
                jobs.append(item)
                if len(jobs) == _MAX_BATCH or self._queue.empty():
                    break
                item = self._queue.get_nowait()
            last = item is None
            if jobs:
                _run_batch(self._writer, jobs)
                self._committed += 1
                _publish(jobs)
                if self._copy is not None:
                    self._copy.repeat(self._writer, [job.fn for job in jobs if job.error is None])
        if self._copy is not None:
            self._copy.close()
        self._writer.close()


def _sync(log: Path) -> None:
    """What is no longer in the write-ahead log is in the database, and SQLite has synced that before it reuses the log."""
    fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _publish(jobs: Sequence[_Job[Any]]) -> None:
    """Wake each event loop once with all outcomes that belong to it."""
    loops: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
    for job in jobs:
        loops.setdefault(job.loop, []).append(job)
    for loop, own in loops.items():
        try:
            loop.call_soon_threadsafe(_settle, own)
        except RuntimeError:  # that loop is closed: nobody is left to wait
            continue


def _settle(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        job.settle()
