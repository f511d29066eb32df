"""Facts that the disk refuses: told at once, written as soon as there is room, and never in place of a promise."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.core.store import MIGRATIONS, Store
from bridge.errors import HostError
from bridge.host.database import Database

POD = Sandbox("aa1", PodConfig(PodMetadata("web", "u", "d")), "runc", "", SandboxState.CREATING, 1, "boot")
MEMBER = Container(
    "cc1", "aa1", ContainerConfig(ContainerMetadata("app"), ImageSpec("busybox")), "sha256:1", "ref", ContainerState.CREATING, 1, "boot"
)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "state.db", MIGRATIONS) as opened:
        yield opened


@pytest.fixture
async def store(database: Database) -> Store:
    """With a pod and a running container."""
    made = Store(database)
    await made.load()
    await made.add(POD)
    await made.apply_sandbox("aa1", "created")
    await made.add(MEMBER)
    for event in ("created", "starting", "started"):
        await made.apply_container("cc1", event)
    return made


async def fill(database: Database) -> None:
    """From now on every change of a record is refused."""

    def refuse(db: sqlite3.Connection) -> None:
        for table in ("sandboxes", "containers"):
            for change in ("UPDATE", "DELETE"):
                db.execute(f"CREATE TRIGGER full_{table}_{change} BEFORE {change} ON {table} BEGIN SELECT RAISE(FAIL, 'disk full'); END")

    await database.write(refuse)


async def empty(database: Database) -> None:
    def allow(db: sqlite3.Connection) -> None:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")

    await database.write(allow)


async def on_disk(database: Database) -> Store:
    again = Store(database)
    await again.load()
    return again


async def test_an_exit_is_told_and_written_later(database: Database, store: Store) -> None:
    await fill(database)
    await store.apply_container("cc1", "exited", exit_code=3)
    assert store.containers["cc1"].state is ContainerState.EXITED
    assert (await on_disk(database)).containers["cc1"].state is ContainerState.RUNNING
    await store.late.settle()
    assert len(store.late) == 1, "the disk is still full"
    await empty(database)
    await store.late.settle()
    assert len(store.late) == 0
    assert (await on_disk(database)).containers["cc1"] == store.containers["cc1"]


async def test_a_promise_is_refused(database: Database, store: Store) -> None:
    await fill(database)
    with pytest.raises(HostError, match="disk full"):
        await store.apply_container("cc1", "journal", pid=5)
    assert store.containers["cc1"].pid == 0
    assert len(store.late) == 0


async def test_a_full_disk_can_be_emptied_and_its_names_used_again(database: Database, store: Store) -> None:
    await fill(database)
    await store.apply_container("cc1", "removing")
    await store.remove("cc1")
    await store.apply_sandbox("aa1", "removing")
    await store.remove("aa1")
    assert not store.sandboxes
    assert not store.containers
    await empty(database)
    again = Sandbox("bb2", POD.config, "runc", "", SandboxState.CREATING, 1, "boot")
    await store.add(again)  # what is owed is written first: the database would hold the name for the old record
    assert (await on_disk(database)).sandboxes == {"bb2": again}


async def test_a_newer_change_overtakes_what_is_owed(database: Database, store: Store) -> None:
    await fill(database)
    await store.apply_container("cc1", "exited", exit_code=3)
    await empty(database)
    await store.apply_container("cc1", "removing")
    assert len(store.late) == 0
    await store.late.settle()
    assert (await on_disk(database)).containers["cc1"].state is ContainerState.REMOVING


async def test_it_is_tried_again_by_itself(database: Database, store: Store) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(store.late.keep)
        await fill(database)
        await store.apply_container("cc1", "exited")
        await empty(database)
        with anyio.fail_after(20):
            while store.late:
                await anyio.sleep(0.02)
        await fill(database)
        await store.remove("cc1")
        await empty(database)
        with anyio.fail_after(20):
            while store.late:
                await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    assert not (await on_disk(database)).containers
