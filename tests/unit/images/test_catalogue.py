"""The index: memory and database agree, foreign keys hold, layers share chains; the pace of transfers; chain ids."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from bridge.errors import HostError, InUse, NotFound
from bridge.host.database import Database
from bridge.images import schema
from bridge.images.catalogue import Catalogue
from bridge.images.layers import chain_ids
from bridge.images.rows import Blob, Layer, NewImage
from bridge.images.transfer import Pace

T = TypeVar("T")
CONFIG = json.dumps({"config": {"User": "u"}, "rootfs": {"diff_ids": []}}).encode()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "index.db", schema.MIGRATIONS) as opened:
        yield opened


def layer(number: int, parent: int | None = None) -> Layer:
    return Layer(number, f"chain{number}", parent, f"diff{number}", 100, 2, 300, True)


def image(number: int, *names: str) -> NewImage:
    blobs = [Blob(f"config{number}", "c", CONFIG), Blob(f"manifest{number}", "m", b"{}")]
    return NewImage(f"config{number}", f"manifest{number}", blobs, names, [(f"repo{number}", f"manifest{number}")])


async def test_a_reload_finds_the_same(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.load()
    assert await catalogue.next_id() == 1
    layers = [layer(1), layer(2, 1), layer(4, 2)]
    await catalogue.add_layers(layers)
    await catalogue.add_image(image(1, "a:1", "a:2"), layers)
    await catalogue.add_image(image(2, "b:1"), layers[:1])
    await catalogue.add_image(image(2, "a:2"), layers[:1])
    await catalogue.add_snapshot("c", "config1")
    for held in ("config1", "config2", "config2"):
        await catalogue.add_hold("d", held)
    assert not await catalogue.drop_image("config2", ["b:1"])
    again = Catalogue(database)
    await again.load()
    for part in ("images", "names", "layers", "layers_by_id", "snapshots", "holds"):
        assert getattr(again, part) == getattr(catalogue, part)
    assert again.holds == {"d": {"config1", "config2"}}
    assert again.images["config1"].names == {"a:1"}
    assert again.images["config2"].names == {"a:2"}
    assert again.images["config1"].config.user == "u"
    assert [y.id for y in again.images["config1"].layers] == [1, 2, 4]
    assert await again.next_id() == 5


class Ambiguous(Database):
    """A database whose next write happens, and fails all the same."""

    fails = False

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        result = await super().write(fn)
        if self.fails:
            self.fails = False
            raise HostError("the disk says that it failed")
        return result


async def test_a_write_that_happened_and_failed_is_what_is(tmp_path: Path) -> None:
    async with await Ambiguous.open(tmp_path / "index.db", schema.MIGRATIONS) as database:
        catalogue = Catalogue(database)
        await catalogue.load()
        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: catalogue.add_layers([layer(1), layer(2, 1)]),
            lambda: catalogue.add_image(image(1, "a:1"), [layer(1)]),
            lambda: catalogue.add_snapshot("c", "config1"),
            lambda: catalogue.add_hold("d", "config1"),
            lambda: catalogue.drop_layers([layer(2, 1)]),
            lambda: catalogue.drop_snapshot("c"),
            lambda: catalogue.drop_holds("d"),
            lambda: catalogue.drop_image("config1"),
        ]
        for change in changes:
            database.fails = True
            with pytest.raises(HostError, match="the disk says"):
                await change()
            again = Catalogue(database)
            await again.load()
            for part in ("images", "names", "layers", "layers_by_id", "snapshots", "holds"):
                assert getattr(again, part) == getattr(catalogue, part), part
        assert not catalogue.images
        assert set(catalogue.layers_by_id) == {1}


class Busy(Ambiguous):
    """After each thing that is read, before its reader has it, ``meanwhile`` happens."""

    meanwhile: Callable[[], Awaitable[object]] | None = None
    unreadable = False

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        if self.unreadable:
            raise HostError("the disk can't be read")
        result = await super().read(fn)
        if self.meanwhile is not None:
            await self.meanwhile()
        return result


async def test_what_others_change_amid_a_reload_stays(tmp_path: Path) -> None:
    async with await Busy.open(tmp_path / "index.db", schema.MIGRATIONS) as database:
        catalogue = Catalogue(database)
        await catalogue.load()
        await catalogue.add_layers([layer(1)])
        await catalogue.add_image(image(1, "a:1"), [layer(1)])
        await catalogue.add_snapshot("old", "config1")
        numbers = itertools.count()

        async def others() -> None:
            number = next(numbers)
            await catalogue.add_snapshot(f"c{number}", "config1")
            await catalogue.add_hold(f"c{number}", "config1")
            await catalogue.add_image(image(2, f"b:{number}"), [layer(1)])
            await catalogue.drop_snapshot("old")

        database.fails, database.meanwhile = True, others
        with pytest.raises(HostError, match="the disk says"):
            await catalogue.add_snapshot("mine", "config1")
        database.meanwhile = None
        theirs = {f"c{number}" for number in range(next(numbers))}
        assert set(catalogue.snapshots) == {"mine", *theirs}
        again = Catalogue(database)
        await again.load()
        for part in ("images", "names", "layers", "layers_by_id", "snapshots", "holds"):
            assert getattr(again, part) == getattr(catalogue, part), part


async def test_two_changes_that_fail_at_once_are_both_what_the_disk_says(tmp_path: Path) -> None:
    async with await Busy.open(tmp_path / "index.db", schema.MIGRATIONS) as database:
        catalogue = Catalogue(database)
        await catalogue.load()
        await catalogue.add_image(image(1, "a:1"), [])

        async def fail(container: str) -> None:
            with pytest.raises(HostError, match="the disk says"):
                await catalogue.add_snapshot(container, "config1")

        async def second() -> None:
            if not started.is_set():
                started.set()
                database.fails = True
                group.start_soon(fail, "d")
                while database.fails:
                    await anyio.sleep(0.001)

        started = anyio.Event()
        database.fails, database.meanwhile = True, second
        async with anyio.create_task_group() as group:
            await fail("c")
        assert set(catalogue.snapshots) == {"c", "d"}


async def test_an_index_that_could_not_be_read_again_is_with_the_next_change(tmp_path: Path) -> None:
    async with await Busy.open(tmp_path / "index.db", schema.MIGRATIONS) as database:
        catalogue = Catalogue(database)
        await catalogue.load()
        await catalogue.add_image(image(1, "a:1"), [])
        database.fails = database.unreadable = True
        with pytest.raises(HostError, match="the disk says"):
            await catalogue.add_snapshot("c", "config1")
        assert not catalogue.snapshots
        database.unreadable = False
        await catalogue.add_snapshot("d", "config1")
        assert set(catalogue.snapshots) == {"c", "d"}


@pytest.mark.parametrize("use", ["add_snapshot", "add_hold"])
async def test_an_image_whose_removal_is_being_written_is_not_there(database: Database, use: str) -> None:
    catalogue = Catalogue(database)
    await catalogue.load()
    await catalogue.add_layers([layer(1)])
    await catalogue.add_image(image(1, "a:1"), [layer(1)])
    async with anyio.create_task_group() as group:
        group.start_soon(catalogue.drop_image, "config1")
        await anyio.lowlevel.checkpoint()  # the removal is in the writer's queue, memory still has the image
        with pytest.raises(NotFound, match="image config1 is not in the store"):
            await getattr(catalogue, use)("c", "config1")
    assert not catalogue.images
    assert not catalogue.snapshots
    assert not catalogue.holds


async def test_foreign_keys_protect_what_is_used(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.load()
    layers = [layer(1), layer(2, 1)]
    await catalogue.add_layers(layers)
    await catalogue.add_image(image(1, "a:1"), layers)
    await catalogue.add_snapshot("c", "config1")
    with pytest.raises(InUse):
        await catalogue.drop_image("config1")
    with pytest.raises(InUse):
        await catalogue.drop_layers([layers[1], layers[0]])
    assert set(catalogue.layers) == {"chain1", "chain2"}
    assert catalogue.users("config1") == ["c"]
    await catalogue.drop_snapshot("c")
    await catalogue.drop_snapshot("c")
    await catalogue.drop_image("config1")
    await catalogue.drop_layers([layers[1], layers[0]])
    assert (catalogue.images, catalogue.names, catalogue.layers) == ({}, {}, {})
    assert await catalogue.blobs(["config1", "manifest1"]) == {}
    with pytest.raises(NotFound):
        await catalogue.add_snapshot("c", "config1")


async def test_a_cancelled_change_still_happens_in_both_places(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.load()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await catalogue.add_layers([layer(1)])
    assert "chain1" in catalogue.layers
    again = Catalogue(database)
    await again.load()
    assert again.layers == catalogue.layers


def test_chain_ids_are_those_of_the_specification() -> None:
    first = "sha256:" + "1" * 64
    second = "sha256:" + "2" * 64
    assert chain_ids([]) == []
    assert chain_ids([first, second]) == [first, "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest()]


async def test_a_trickle_is_no_progress() -> None:
    pace = Pace(idle_seconds=1, floor_bytes=1000, floor_seconds=0.05)

    async def trickle() -> bytes:
        await anyio.sleep(0.02)
        return b"x"

    async def hundred() -> None:
        for _ in range(100):
            assert await pace.wait(trickle) == b"x"

    with pytest.raises(TimeoutError):
        await hundred()


async def test_silence_ends_and_a_flow_goes_on() -> None:
    async def silence() -> bytes:
        await anyio.sleep(10)
        return b"late"

    pace = Pace(idle_seconds=0.05, floor_bytes=1, floor_seconds=0.01)
    with pytest.raises(TimeoutError):
        await pace.wait(silence)

    async def flow() -> bytes:
        await anyio.sleep(0.004)
        return b"x" * 1000

    for _ in range(10):
        assert await pace.wait(flow)


async def test_a_table_that_is_gone_is_a_host_error(database: Database) -> None:
    catalogue = Catalogue(database)
    await database.write(lambda c: c.execute("DROP TABLE snapshots").rowcount)
    with pytest.raises(HostError):
        await catalogue.load()


async def test_a_held_image_stays_until_its_holder_lets_go(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.load()
    await catalogue.add_image(image(1, "a:1"), [])
    with pytest.raises(NotFound):
        await catalogue.add_hold("c", "config2")
    await catalogue.add_hold("c", "config1")
    await catalogue.add_hold("b", "config1")
    assert catalogue.users("config1") == ["b", "c"]
    await catalogue.drop_holds("c")
    await catalogue.drop_holds("c")
    with pytest.raises(InUse):
        await catalogue.drop_image("config1")
    await catalogue.drop_holds("b")
    await catalogue.drop_image("config1")
    assert catalogue.images == {}


async def test_an_image_goes_by_its_names_only_if_it_has_no_other(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.add_layers([layer(1)])
    await catalogue.add_image(image(1, "a:1", "a:2"), [layer(1)])
    assert not await catalogue.drop_image("config1", ["a:1"])
    assert catalogue.names == {"a:2": "config1"}
    assert catalogue.images["config1"].names == {"a:2"}
    assert await catalogue.drop_image("config1", ["a:2"])
    assert not catalogue.images
    assert not catalogue.names
    await catalogue.add_image(image(1, "a:1", "a:2"), [layer(1)])
    assert await catalogue.drop_image("config1")
    assert await catalogue.drop_image("config1", ["a:1"])
    again = Catalogue(database)
    await again.load()
    assert not again.images
    assert not again.names


async def test_a_fault_stays_until_the_layer_is_made_anew_or_found_whole(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.add_layers([layer(1), layer(2, 1)])
    record = await catalogue.add_image(image(1, "a:1"), [layer(1), layer(2, 1)])
    assert catalogue.is_whole(record)
    await catalogue.verified(1, "bits")
    await catalogue.sync()
    again = Catalogue(database)
    await again.load()
    for one in (catalogue, again):
        assert one.faults == {1: "bits"}
        assert not one.is_whole(one.images["config1"])
        assert (one.is_sound("chain1"), one.is_sound("chain2"), one.is_sound("chain3")) == (False, True, False)
    await again.verified(1, "")
    assert again.is_whole(again.images["config1"])
    await catalogue.add_layers([replace(layer(1), disk_bytes=7, listing="sha256:new")])
    assert catalogue.faults == {}
    assert catalogue.images["config1"].layers[0].disk_bytes == 7
    last = Catalogue(database)
    await last.load()
    assert last.layers["chain1"] == catalogue.layers["chain1"] == replace(layer(1), disk_bytes=7, listing="sha256:new")
    await last.verified(99, "a layer that was dropped meanwhile")
    assert last.faults == {}


async def test_a_damaged_document_is_replaced_by_the_right_one(database: Database) -> None:
    catalogue = Catalogue(database)
    await catalogue.add_image(image(1, "a:1"), [])
    await database.write(lambda c: c.execute("UPDATE blobs SET data = x'00' WHERE digest = 'manifest1'"))
    await catalogue.add_image(image(1, "a:1"), [])
    assert await catalogue.blobs(["manifest1"]) == {"manifest1": Blob("manifest1", "m", b"{}")}


async def test_an_image_that_is_here_with_name_and_documents_is_not_written_again(database: Database) -> None:
    catalogue = Catalogue(database)
    record = await catalogue.add_image(image(1, "a:1"), [])
    before = database._committed
    assert await catalogue.add_image(replace(image(1, "a:1"), kept=True), []) is record
    assert database._committed == before
    assert "a:2" in (await catalogue.add_image(replace(image(1, "a:2"), kept=True), [])).names, "a name that is new"
    assert database._committed == before + 1
    more = replace(image(1, "a:1"), kept=True, digests=[("other.example/a", "manifest1")])
    assert ("other.example/a", "manifest1") in (await catalogue.add_image(more, [])).digests
    assert database._committed == before + 2
    await catalogue.add_image(image(2, "a:1"), [])
    assert (await catalogue.add_image(replace(image(1, "a:1"), kept=True), [])).names == {"a:1", "a:2"}, "it had moved"
    assert catalogue.names["a:1"] == record.id
