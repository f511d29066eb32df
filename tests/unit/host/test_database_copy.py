"""The copy of a database: the same content at any moment, never in the way, and what it is made from and restored to."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import anyio
import pytest

from bridge.errors import AlreadyExists, CorruptData, HostError
from bridge.host import database_copy
from bridge.host.database import Database

SCHEMA = "CREATE TABLE pods (name TEXT PRIMARY KEY);"


def add(name: str):
    return lambda c: c.execute("INSERT INTO pods VALUES (?)", (name,)).rowcount


def names(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT name FROM pods ORDER BY name")]
    finally:
        connection.close()


async def agrees(path: Path, wanted: list[str]) -> None:
    """It is written after the caller was answered."""
    with anyio.fail_after(10):
        while not path.exists() or names(path) != wanted:
            await anyio.sleep(0.005)


async def test_it_has_what_was_there_and_what_is_written(tmp_path: Path) -> None:
    path, copy = tmp_path / "x.db", tmp_path / "copy.db"
    async with await Database.open(path, [SCHEMA]) as db:
        await db.write(add("before"))
    async with await Database.open(path, [SCHEMA], copy) as db:
        await agrees(copy, ["before"])
        assert copy.stat().st_mode & 0o777 == 0o600
        await db.write(add("later"))
        with pytest.raises(AlreadyExists):
            await db.write(add("later"))
        await db.write(add("last"))
        await agrees(copy, ["before", "last", "later"])
    path.unlink()
    assert database_copy.restore(copy, path)
    assert path.stat().st_mode & 0o777 == 0o600
    async with await Database.open(path, [SCHEMA], copy) as db:
        assert await db.read(lambda c: c.execute("PRAGMA user_version").fetchone()[0]) == 1
        await db.write(add("after"))
        await agrees(copy, ["after", "before", "last", "later"])


async def test_one_that_can_not_be_written_is_removed_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, copy = tmp_path / "x.db", tmp_path / "copy.db"
    async with await Database.open(path, [SCHEMA], copy) as db:
        await agrees(copy, [])
        other = sqlite3.connect(copy)
        other.execute("INSERT INTO pods VALUES ('a')")  # so that the copy refuses what the original takes
        other.commit()
        other.close()
        assert await db.write(add("a")) == 1
        with anyio.fail_after(10):
            while copy.exists():
                await anyio.sleep(0.005)
        assert await db.write(add("b")) == 1
        assert not copy.exists(), "not at once again"
        monkeypatch.setattr(db._copy, "_not_before", 0.0)
        assert await db.write(add("c")) == 1
        await agrees(copy, ["a", "b", "c"])


async def test_a_directory_that_takes_no_copy_hinders_nobody(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "x.db", [SCHEMA], tmp_path / "absent" / "copy.db") as db:
        assert await db.write(add("a")) == 1
        assert await db.write(add("b")) == 1


def test_restoring(tmp_path: Path) -> None:
    copy, path = tmp_path / "copy.db", tmp_path / "x.db"
    assert not database_copy.restore(copy, path)
    copy.write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptData, match="the copy"):
        database_copy.restore(copy, path)
    assert not path.exists()
    database_copy.remove(copy)
    connection = sqlite3.connect(copy)
    connection.execute(SCHEMA)
    connection.close()
    with pytest.raises(HostError, match="can't restore"):
        database_copy.restore(copy, tmp_path / "absent" / "x.db")
    (tmp_path / "x.db.new").write_bytes(b"from a restore that was killed")
    assert database_copy.restore(copy, path)
    assert names(path) == []
    database_copy.remove(copy)
    database_copy.remove(copy)
    assert [each.name for each in tmp_path.iterdir()] == ["x.db"]
