"""Containers' stdio in the service manager's store: put, told once, taken back, found again by the next server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bridge.host.service_manager import ServiceManager
from bridge.monitor.keeping import Keeper
from bridge.monitor.protocol import Frame
from bridge.monitor.shelf import Shelf
from tests.service_store import ServiceStore
from tests.unit.monitor.test_keeping import Monitor

FACTS = {"pid": 7, "start_ticks": 9, "log_path": "/l"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServiceStore]:
    before = len(os.listdir("/proc/self/fd"))
    made = ServiceStore(tmp_path / "notify")
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def manager(store: ServiceStore, capacity: int = 100) -> ServiceManager:
    """As the next process finds it: the descriptors are its own."""
    return ServiceManager(str(store.path), 0, capacity, {name: [os.dup(fd)] for name, fd in store.kept.items()})


@asynccontextmanager
async def shelf(store: ServiceStore, capacity: int = 100) -> AsyncIterator[Shelf]:
    made = Shelf(manager(store, capacity))
    async with anyio.create_task_group() as group:
        group.start_soon(made.keep)
        yield made
        group.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


def held(task: str, **ends: int) -> Frame:
    return Frame({"event": "held", "task": task, **FACTS, "fds": list(ends)}, tuple(ends.values()))


async def test_what_is_kept_is_found_by_the_next_server(store: ServiceStore) -> None:
    reader, writer = os.pipe()
    async with shelf(store) as first:
        keeper = Keeper(first)
        keeper.on_event(held("a", stdout=reader))
        keeper.on_event(held("b", stdout=os.open(os.devnull, os.O_RDONLY), stdin=os.open(os.devnull, os.O_WRONLY)))
        await until(lambda: set(store.kept) == {"a.facts", "a.stdout", "b.facts", "b.stdout", "b.stdin"})
        keeper.close()
    os.write(writer, b"said while nobody was there")
    async with shelf(store) as second:
        keeper = Keeper(second)
        monitor = Monitor()
        await keeper.hand_over(monitor, {})
        assert [(task, pid, ticks, held["fds"]) for task, pid, ticks, held, _ in monitor.taken] == [
            ("a", 7, 9, ["stdout"]),
            ("b", 7, 9, ["stdout", "stdin"]),
        ]
        assert os.read(keeper._kept["a"].ends["stdout"], 64) == b"said while nobody was there"
        # The new monitor shares the same again, which is no news to the store; then the containers end.
        keeper.on_event(held("a", stdout=os.dup(keeper._kept["a"].ends["stdout"])))
        assert second._queue == []
        keeper.on_event(Frame({"event": "stdin_closed", "task": "b"}))
        await until(lambda: "b.stdin" not in store.kept)
        keeper.on_event(Frame({"event": "exit", "task": "a"}))
        keeper.on_event(Frame({"event": "exit", "task": "b"}))
        await until(lambda: not store.kept)
        keeper.close()
    os.close(writer)


async def test_a_monitor_that_lives_is_given_nothing_it_has(store: ServiceStore) -> None:
    async with shelf(store) as first:
        keeper = Keeper(first)
        for task in ("runs", "ended", "new"):
            keeper.on_event(held(task, stdout=os.open(os.devnull, os.O_RDONLY)))
        await until(lambda: len(store.kept) == 6)
        keeper.close()
    async with shelf(store) as second:
        keeper, monitor = Keeper(second), Monitor()
        await keeper.hand_over(monitor, {"runs": False, "ended": True})
        assert [taken[0] for taken in monitor.taken] == ["new"]
        await until(lambda: set(store.kept) == {"runs.facts", "runs.stdout", "new.facts", "new.stdout"})
        keeper.close()


async def test_a_full_store_and_things_that_nobody_knows(store: ServiceStore, caplog: pytest.LogCaptureFixture) -> None:
    store.kept["strange.stdout"] = os.open(os.devnull, os.O_RDONLY)
    async with shelf(store, capacity=3) as one:
        assert one.found == {}
        assert "nothing is known of it" in caplog.text
        await until(lambda: not store.kept)
        keeper = Keeper(one)
        for task in ("a", "b", "c"):
            keeper.on_event(held(task, stdout=os.open(os.devnull, os.O_RDONLY)))
        await until(lambda: set(store.kept) == {"a.facts", "a.stdout"})
        assert len(keeper) == 3
        assert sum("FileDescriptorStoreMax" in line for line in caplog.messages) == 1
        keeper.on_event(Frame({"event": "exit", "task": "a"}))
        keeper.on_event(held("d", stdout=os.open(os.devnull, os.O_RDONLY)))
        await until(lambda: set(store.kept) == {"d.facts", "d.stdout"})
        keeper.close()


async def test_a_service_manager_that_is_away_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.monitor.shelf._PAUSE", 0.01)
    late = Shelf(ServiceManager(str(tmp_path / "notify"), 0, 100))
    async with anyio.create_task_group() as group:
        group.start_soon(late.keep)
        end = os.open(os.devnull, os.O_RDONLY)
        late.put("a", FACTS, {"stdout": end})
        os.close(end)
        await anyio.sleep(0.05)
        store = ServiceStore(tmp_path / "notify")
        await until(lambda: set(store.kept) == {"a.facts", "a.stdout"})
        group.cancel_scope.cancel()
    store.close()
