"""The database: group commit, isolation of failing writes, cancellation, migrations, damage."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bridge.errors import AlreadyExists, ConfigError, CorruptData, HostError, IllegalTransition, InUse, Unavailable
from bridge.host import database
from bridge.host.database import Database

SCHEMA = """
CREATE TABLE pods (name TEXT PRIMARY KEY);
CREATE TABLE cons (name TEXT PRIMARY KEY, pod TEXT NOT NULL REFERENCES pods(name));
"""


def add(name: str):
    return lambda c: c.execute("INSERT INTO pods VALUES (?)", (name,)).rowcount


def names(c: sqlite3.Connection) -> list[str]:
    return [row[0] for row in c.execute("SELECT name FROM pods ORDER BY name")]


async def test_writes_return_results_and_survive_reopening(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        assert await db.write(add("a")) == 1
        assert await db.read(names) == ["a"]
    assert (tmp_path / "x.db").stat().st_mode & 0o777 == 0o600
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        assert await db.read(names) == ["a"]


async def test_concurrent_writes_share_a_transaction_and_fail_alone(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        gate, started = threading.Event(), threading.Event()
        commits = []
        db._writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        outcome: dict[str, object] = {}

        async def write(name: str, fn) -> None:
            try:
                outcome[name] = await db.write(fn)
            except Exception as exc:  # noqa: BLE001
                outcome[name] = exc

        def half_then_fail(c: sqlite3.Connection) -> None:
            add("never")(c)
            raise IllegalTransition("no")

        async with anyio.create_task_group() as group:
            group.start_soon(write, "gate", lambda c: (started.set(), gate.wait(5)))
            assert await anyio.to_thread.run_sync(started.wait, 5)
            for number in range(20):
                group.start_soon(write, f"p{number}", add(f"p{number:02}"))
            group.start_soon(write, "dup", add("p03"))
            group.start_soon(write, "bad", half_then_fail)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert isinstance(outcome["dup"], AlreadyExists)
        assert isinstance(outcome["bad"], IllegalTransition)
        assert await db.read(names) == [f"p{n:02}" for n in range(20)]
        assert len(commits) == 2


async def test_a_cancelled_caller_leaves_but_the_write_happens(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        gate = threading.Event()

        def slow(c: sqlite3.Connection) -> None:
            gate.wait(5)
            add("kept")(c)

        with anyio.move_on_after(0.01) as scope:
            await db.write(slow)
        assert scope.cancelled_caught
        gate.set()
        await db.write(add("next"))
        assert await db.read(names) == ["kept", "next"]


async def test_constraints_become_our_errors(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        await db.write(add("a"))
        with pytest.raises(AlreadyExists):
            await db.write(add("a"))
        await db.write(lambda c: c.execute("INSERT INTO cons VALUES ('c', 'a')").rowcount)
        with pytest.raises(InUse):
            await db.write(lambda c: c.execute("DELETE FROM pods").rowcount)
        with pytest.raises(HostError):
            await db.write(lambda c: c.execute("SELECT * FROM nowhere").fetchall())
        with pytest.raises(HostError, match="readonly"):
            await db.read(add("b"))


async def test_migrations_run_once_in_order_and_undo_themselves(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with await Database.open(path, [SCHEMA]) as db:
        await db.write(add("a"))
    with pytest.raises(HostError):
        await Database.open(path, [SCHEMA, "ALTER TABLE pods ADD COLUMN uid TEXT; ALTER TABLE none ADD COLUMN x TEXT"])
    async with await Database.open(path, [SCHEMA, "ALTER TABLE pods ADD COLUMN uid TEXT NOT NULL DEFAULT 'u'"]) as db:
        assert await db.read(lambda c: c.execute("SELECT * FROM pods").fetchall()) == [("a", "u")]
    with pytest.raises(ConfigError, match="newer"):
        await Database.open(path, [SCHEMA])


@pytest.mark.parametrize("damage", ["header", "page"])
async def test_a_damaged_file_is_corrupt_data(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.db"
    async with await Database.open(path, [SCHEMA]) as db:
        for number in range(0, 2000, 200):
            rows = [(f"{number + i:090}",) for i in range(200)]
            await db.write(lambda c, rows=rows: c.executemany("INSERT INTO pods VALUES (?)", rows).rowcount)
    raw = bytearray(path.read_bytes())
    if damage == "header":
        raw[:16] = b"not a database!!"
    else:
        raw[4096 * 3 : 4096 * 3 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises(CorruptData):
        await Database.open(path, [SCHEMA])


async def test_close_drains_and_refuses_later_writes(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "x.db", [SCHEMA])
    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(db.write, add(f"{number:02}"))
        await anyio.wait_all_tasks_blocked()
        await db.close()
    await db.close()
    with pytest.raises(Unavailable):
        await db.write(add("late"))
    with pytest.raises(Unavailable):
        await db.read(names)
    connection = sqlite3.connect(tmp_path / "x.db")
    assert len(names(connection)) == 50
    connection.close()


async def test_an_unreachable_directory_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't open"):
        await Database.open(tmp_path / "none" / "x.db", [SCHEMA])


async def test_a_sync_waits_for_the_disk_only_when_something_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(database, "_sync", synced.append)
    async with await Database.open(tmp_path / "x.db", [SCHEMA]) as db:
        await db.sync()
        assert len(synced) == 1, "an earlier process may have left something"
        await db.sync()
        assert len(synced) == 1
        await db.write(lambda c: c.execute("PRAGMA user_version"))
        await db.sync()
        await db.sync()
        assert len(synced) == 2

        def fails(_: Path) -> None:
            raise OSError(5, "the disk is gone")

        await db.write(lambda c: c.execute("PRAGMA user_version"))
        monkeypatch.setattr(database, "_sync", fails)
        for _ in range(2):
            with pytest.raises(HostError, match="the disk is gone"):
                await db.sync()
