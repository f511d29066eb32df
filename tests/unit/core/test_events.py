"""The hub: which changes are told, in which order and with what, at what times, and what a slow subscriber gets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.core import lifecycle
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.events import OF_CONTAINERS, OF_SANDBOXES, ContainerEvent, EventHub
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.core.store import MIGRATIONS, Store
from bridge.errors import LimitExceeded
from bridge.host.database import Database

SILENT = {"journal", "starting", "removing"}
QUEUE = 8


def sandbox(ident: str = "aa1", created_at: int = 1) -> Sandbox:
    return Sandbox(ident, PodConfig(PodMetadata("web", f"uid-{ident}", "d")), "runc", "", SandboxState.CREATING, created_at, "boot")


def container(ident: str, created_at: int = 1) -> Container:
    config = ContainerConfig(ContainerMetadata(ident), ImageSpec("busybox"))
    return Container(ident, "aa1", config, "sha256:1", "ref", ContainerState.CREATING, created_at, "boot")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with await Database.open(tmp_path / "state.db", MIGRATIONS) as opened:
        made = Store(opened)
        await made.load()
        yield made


@pytest.fixture
async def hub(store: Store) -> EventHub:
    made = EventHub(store, queue=QUEUE)
    await made.keep_first(0)
    return made


class Heard:
    """What one subscriber has got, and whether it was ended."""

    def __init__(self) -> None:
        self.events: list[ContainerEvent] = []
        self.ended: list[LimitExceeded] = []

    @property
    def told(self) -> list[str]:
        return [f"{event.subject} {event.kind}" for event in self.events]


async def listen(hub: EventHub, heard: Heard, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    async with hub.subscribe(heard.ended.append) as events:
        task_status.started()
        async for event in events:
            heard.events.append(event)


async def live_and_die(store: Store, ident: str) -> None:
    await store.add(container(ident))
    await store.apply_container(ident, "created")
    await store.apply_container(ident, "starting")
    await store.apply_container(ident, "started", started_at=5)
    await store.apply_container(ident, "exited", exit_code=3, finished_at=6)
    await store.apply_container(ident, "removing")
    await store.remove(ident)


async def ready(store: Store) -> Sandbox:
    await store.add(sandbox())
    return await store.apply_sandbox("aa1", "created", ips=("10.0.0.1",))


def test_every_event_of_the_store_is_told_or_known_to_be_silent() -> None:
    for table, told in ((lifecycle.SANDBOX, OF_SANDBOXES), (lifecycle.CONTAINER, OF_CONTAINERS)):
        assert {event for _, event in table} | {"removed"} == told.keys() | (SILENT & {event for _, event in table})


async def test_a_pods_whole_life_with_what_there_was_at_each_moment(store: Store, hub: EventHub) -> None:
    heard = Heard()
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, heard)
        await ready(store)
        await store.add(container("other"))
        await store.apply_container("other", "created")
        await anyio.wait_all_tasks_blocked()
        await live_and_die(store, "c1")
        await anyio.wait_all_tasks_blocked()
        await store.apply_container("other", "removing")
        await store.remove("other")
        await store.apply_sandbox("aa1", "stopped")
        await store.apply_sandbox("aa1", "stopped")
        await store.apply_sandbox("aa1", "removing")
        await store.remove("aa1")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert heard.told == [
        "aa1 created",
        "aa1 started",
        "other created",
        "c1 created",
        "c1 started",
        "c1 stopped",
        "c1 deleted",
        "other deleted",
        "aa1 stopped",
        "aa1 deleted",
    ]
    of = {f"{event.subject} {event.kind}": event for event in heard.events}
    shown = {what: [(member.id, str(member.state)) for member in event.containers] for what, event in of.items()}
    assert shown["aa1 started"] == []
    assert shown["c1 created"] == [("other", "created"), ("c1", "created")]
    assert shown["c1 started"] == [("other", "created"), ("c1", "running")]
    assert shown["c1 stopped"] == [("other", "created"), ("c1", "exited")]
    assert shown["c1 deleted"] == [("other", "created")], "what remains"
    assert shown["aa1 deleted"] == []
    assert (of["c1 stopped"].containers[1].exit_code, of["c1 stopped"].sandbox.ips) == (3, ("10.0.0.1",))
    assert of["aa1 created"].sandbox.state is SandboxState.READY
    assert of["aa1 deleted"].sandbox.config.metadata.uid == "uid-aa1", "a kubelet finds the pod by it"
    assert heard.ended == []


async def test_a_failed_creation_is_silent_and_a_failed_start_is_a_stop(store: Store, hub: EventHub) -> None:
    heard = Heard()
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, heard)
        await store.add(sandbox("undone"))
        await store.apply_sandbox("undone", "removing")
        await store.remove("undone")
        await ready(store)
        await store.add(container("dropped"))
        await store.remove("dropped")
        await store.add(container("undone"))
        await store.apply_container("undone", "removing")
        await store.remove("undone")
        for ident, event in (("bad", "start-failed"), ("lost", "exited")):
            await store.add(container(ident))
            await store.apply_container(ident, "created")
            await store.apply_container(ident, "starting")
            await store.apply_container(ident, event, exit_code=128)
        await store.add(container("never"))
        await store.apply_container("never", "created")
        await store.apply_container("never", "abandoned")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert heard.told[2:] == ["bad created", "bad stopped", "lost created", "lost stopped", "never created", "never stopped"]
    assert hub._unborn == set()


async def test_times_grow_strictly_also_when_the_clock_is_set_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    future = time.time_ns() + 3600 * 10**9
    await store.add(sandbox("before", created_at=future))
    hub, heard = EventHub(store, queue=QUEUE), Heard()
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, heard)
        await ready(store)
        monkeypatch.setattr(time, "time_ns", lambda: 1000)
        await live_and_die(store, "c1")
        await anyio.wait_all_tasks_blocked()
        told = hub.now()
        group.cancel_scope.cancel()
    times = [event.at for event in heard.events]
    assert len(times) == 6
    assert times == sorted(set(times))
    assert times[0] > future, "an earlier server may have told of the newest record"
    assert told > times[-1], "the time of a status is from the same clock"


async def test_a_server_after_a_restart_goes_on_after_all_times_of_the_last_also_when_the_clock_was_set_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod and all its records are gone, and a status was told after: no record knows how late it was."""
    file, true = tmp_path / "event-times", time.time_ns
    first = EventHub(store, queue=QUEUE)
    await first.times.resume(file, "boot-1")
    monkeypatch.setattr(time, "time_ns", lambda: true() + 3600 * 10**9)
    told, before = first.now(), file.read_text()
    async with anyio.create_task_group() as group:
        group.start_soon(first.times.keep, 0.01)
        with anyio.fail_after(30):
            while file.read_text() == before:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    monkeypatch.setattr(time, "time_ns", lambda: true() - 3600 * 10**9)
    again = EventHub(store, queue=QUEUE)
    await again.times.resume(file, "boot-1")
    assert told < again.now() < told + 60 * 10**9, "and not far in the future"
    another = EventHub(store, queue=QUEUE)
    await another.times.resume(file, "boot-2")
    assert another.now() < true(), "nothing of an earlier boot runs: the clock is right by itself"


@pytest.mark.parametrize("content", ["", "boot-1", "boot-1 x", "boot-1 -5", "boot-1 " + "9" * 30, "\udcff"])
async def test_a_file_of_times_that_makes_no_sense_is_made_anew(store: Store, tmp_path: Path, content: str) -> None:
    file = tmp_path / "event-times"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    hub = EventHub(store, queue=QUEUE)
    await hub.times.resume(file, "boot-1")
    assert abs(hub.now() - time.time_ns()) < 60 * 10**9
    assert file.read_text().startswith("boot-1 1")


async def test_times_are_told_also_where_their_file_can_not_be(store: Store, tmp_path: Path) -> None:
    (tmp_path / "event-times").mkdir()
    hub = EventHub(store, queue=QUEUE)
    await hub.times.resume(tmp_path / "event-times", "boot-1")
    assert abs(hub.now() - time.time_ns()) < 60 * 10**9


async def test_who_falls_behind_is_ended_at_once_and_the_others_miss_nothing(store: Store, hub: EventHub) -> None:
    quick, stuck = Heard(), Heard()
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, quick)
        async with hub.subscribe(stuck.ended.append) as events:
            assert hub.subscribers == 2
            await ready(store)
            for number in range(10):
                await live_and_die(store, f"c{number}")
                await anyio.wait_all_tasks_blocked()
            (why,) = stuck.ended
            assert f"{QUEUE} container events" in str(why)
            got: list[ContainerEvent] = []

            async def read() -> None:
                async for event in events:
                    got.append(event)  # noqa: PERF401 - ends by the error

            with pytest.raises(LimitExceeded):
                await read()
        assert hub.subscribers == 1
        group.cancel_scope.cancel()
    assert [event.at for event in got] == [event.at for event in quick.events[:QUEUE]], "without a gap up to the end"
    assert len(quick.events) == 2 + 10 * 4
    assert (quick.ended, hub.overflows, hub.subscribers) == ([], 1, 0)


async def test_the_first_events_are_kept_for_those_who_come_back(store: Store) -> None:
    hub, late = EventHub(store, queue=QUEUE), Heard()
    await ready(store)
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, late)
        await live_and_die(store, "c1")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert late.told == ["aa1 created", "aa1 started", "c1 created", "c1 started", "c1 stopped", "c1 deleted"]
    await hub.keep_first(0)
    later = Heard()
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, later)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert later.events == []


async def test_more_first_events_than_a_queue_holds_are_not_kept_by_halves(store: Store) -> None:
    hub, late = EventHub(store, queue=QUEUE), Heard()
    await ready(store)
    for number in range(3):
        await live_and_die(store, f"c{number}")
    async with anyio.create_task_group() as group:
        await group.start(listen, hub, late)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert (late.events, late.ended) == ([], [])


async def test_nobody_listens_nothing_is_made(store: Store, hub: EventHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an event was made for nobody")

    monkeypatch.setattr(hub, "_publish", refuse)
    monkeypatch.setattr(hub, "members", refuse)
    await ready(store)
    await live_and_die(store, "c1")
