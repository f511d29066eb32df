"""The store: one owner, persist then publish, names unique, unreadable rows set aside."""

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.core.store import MIGRATIONS, Store
from bridge.errors import AlreadyExists, IllegalTransition, InvalidRequest, NotFound
from bridge.host.database import Database


def sandbox(ident: str = "aa1", name: str = "web") -> Sandbox:
    return Sandbox(ident, PodConfig(PodMetadata(name, "u", "d")), "runc", "", SandboxState.CREATING, 1, "boot")


def container(ident: str = "cc1", name: str = "app") -> Container:
    config = ContainerConfig(ContainerMetadata(name), ImageSpec("busybox"))
    return Container(ident, "aa1", config, "sha256:1", "ref", ContainerState.CREATING, 1, "boot")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "state.db", MIGRATIONS) as opened:
        yield opened


@pytest.fixture
async def store(database: Database) -> Store:
    made = Store(database)
    await made.load()
    return made


async def test_what_is_applied_is_there_after_a_restart(database: Database, store: Store) -> None:
    await store.add(sandbox())
    await store.add(container())
    ready = await store.apply_sandbox("aa1", "created", ips=("10.0.0.1",))
    again = Store(database)
    await again.load()
    assert again.sandboxes == {"aa1": ready} == store.sandboxes
    assert again.members("aa1") == (container(),)
    assert again.named(ready.name_key) == "aa1"


async def test_an_illegal_event_changes_nothing(store: Store) -> None:
    await store.add(sandbox())
    with pytest.raises(IllegalTransition):
        await store.apply_sandbox("aa1", "died")
    assert store.sandboxes["aa1"] == sandbox()


async def test_names_are_unique_while_they_live(store: Store) -> None:
    await store.add(sandbox())
    with pytest.raises(AlreadyExists, match="aa1"):
        await store.add(sandbox("bb2"))
    await store.remove("aa1")
    await store.add(sandbox("bb2"))


async def test_what_is_only_to_go_holds_no_name(database: Database, store: Store) -> None:
    await store.add(sandbox())
    await store.add(container())
    await store.apply_container("cc1", "removing", unremoved="busy")
    await store.apply_sandbox("aa1", "removing", unremoved="busy")
    await store.apply_sandbox("aa1", "removing", unremoved="still busy")
    await store.add(sandbox("bb2"))
    await store.add(container("cc2"))
    again = Store(database)
    await again.load()
    assert again.sandboxes == store.sandboxes
    assert (again.named(sandbox().name_key), again.named(container().name_key)) == ("bb2", "cc2")
    await again.remove("cc1")
    assert again.named(container().name_key) == "cc2"


async def test_readers_never_see_what_is_not_committed(database: Database, store: Store) -> None:
    await store.add(sandbox())

    def refuse(db: sqlite3.Connection) -> None:
        db.execute("CREATE TRIGGER full BEFORE UPDATE ON sandboxes BEGIN SELECT RAISE(FAIL, 'disk full'); END")

    await database.write(refuse)
    with pytest.raises(Exception, match="disk full"):
        await store.apply_sandbox("aa1", "created")
    assert store.sandboxes["aa1"].state is SandboxState.CREATING


async def test_changes_of_one_object_queue(store: Store) -> None:
    await store.add(sandbox())
    await store.apply_sandbox("aa1", "created")

    async def note(number: int) -> None:
        await store.apply_sandbox("aa1", "journal", pid=number)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(note, number)
    assert store.sandboxes["aa1"].revision == 21


async def test_the_change_feed_tells_before_and_after(store: Store) -> None:
    async with store.changes.subscribe() as changes:
        await store.add(sandbox())
        await store.apply_sandbox("aa1", "created")
        await store.remove("aa1")
        seen = []
        async for change in changes:
            seen.append((change.event, change.before and change.before.state, change.after and change.after.state))
            if change.event == "removed":
                break
    assert seen == [
        ("added", None, SandboxState.CREATING),
        ("created", SandboxState.CREATING, SandboxState.READY),
        ("removed", SandboxState.READY, None),
    ]


async def test_prefixes(store: Store) -> None:
    await store.add(sandbox("aa1", "one"))
    await store.add(sandbox("ab2", "two"))
    assert store.sandbox("aa").id == "aa1"
    with pytest.raises(InvalidRequest, match="ambiguous"):
        store.sandbox("a")
    with pytest.raises(NotFound):
        store.sandbox("ax")
    with pytest.raises(InvalidRequest, match="sandbox_id"):
        store.sandbox("")


async def test_a_caller_that_is_cancelled_leaves_memory_and_disk_equal(database: Database, store: Store) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.add(sandbox())
    again = Store(database)
    await again.load()
    assert again.sandboxes == store.sandboxes


async def test_removal_of_the_absent(store: Store) -> None:
    await store.remove("absent")
    with pytest.raises(NotFound):
        await store.apply_container("absent", "starting")


async def test_owed_detachments_survive(database: Database, store: Store) -> None:
    await store.owe_detachment("aa1", {"network": "n", "data": {"x": 1}})
    again = Store(database)
    await again.load()
    assert again.detachments == {"aa1": {"network": "n", "data": {"x": 1}}}
    await again.settle_detachment("aa1")
    third = Store(database)
    await third.load()
    assert third.detachments == {}


async def test_a_container_without_its_sandbox_is_set_aside(database: Database, store: Store) -> None:
    await store.add(sandbox())
    await store.add(container())
    await database.write(lambda db: db.execute("DELETE FROM sandboxes"))
    again = Store(database)
    await again.load()
    assert again.containers == {}
    assert await database.read(lambda db: db.execute("SELECT id, kind FROM set_aside").fetchall()) == [("cc1", "containers")]
    assert replace(container(), state=ContainerState.CREATED).name_key == container().name_key
