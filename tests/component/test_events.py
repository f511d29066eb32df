"""GetContainerEvents over the real core and a real socket: a thousand short containers, subscribers of every kind, a restart."""

from __future__ import annotations

import gc
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from bridge._proto.runtime import v1 as pb
from bridge.api import encoding
from bridge.api.runtime import NodeView, RuntimeRpcs
from bridge.api.server import MAX_MESSAGE, GrpcServer
from bridge.client import CriClient, CriError, connect
from bridge.core.entities import ContainerState
from bridge.core.events import QUEUE, ContainerEvent
from bridge.core.model import Resources
from bridge.core.services import Services
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root
CHURN = 1000
AT_ONCE = 20
EVENTS = "/runtime.v1.RuntimeService/GetContainerEvents"
CREATED, STARTED, STOPPED, DELETED = (
    pb.ContainerEventType.CONTAINER_CREATED_EVENT,
    pb.ContainerEventType.CONTAINER_STARTED_EVENT,
    pb.ContainerEventType.CONTAINER_STOPPED_EVENT,
    pb.ContainerEventType.CONTAINER_DELETED_EVENT,
)


@asynccontextmanager
async def served(core: Services, path: Path, max_message: int = MAX_MESSAGE) -> AsyncIterator[tuple[GrpcServer, CriClient]]:
    node = NodeView(systemd_cgroups=False, mount_copies=False, health=lambda: ("", ""), details=lambda: {})
    async with GrpcServer([RuntimeRpcs(core, node, cast("Any", None))], max_message=max_message) as server:
        await server.listen(path)
        async with connect(path, timeout=60) as cri:
            yield server, cri


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not true():
            await anyio.sleep(0.005)


class Reader:
    """A subscriber that reads all it is sent."""

    def __init__(self) -> None:
        self.events: list[pb.ContainerEventResponse] = []

    async def run(self, core: Services, cri: CriClient, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        before = core.events.subscribers
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, cri)
            await until(lambda: core.events.subscribers > before)
            task_status.started()

    async def _read(self, cri: CriClient) -> None:
        async for event in cri.runtime.get_container_events():
            self.events.append(event)

    @property
    def told(self) -> list[tuple[str, pb.ContainerEventType]]:
        return [(event.container_id, event.container_event_type) for event in self.events]


async def short_life(core: Services, world: World, sandbox: str, name: str) -> str:
    made = await core.containers.create(sandbox, container(name))
    await core.containers.start(made.id)
    world.backend.containers[made.id].exit(7)
    await until(lambda: core.store.containers[made.id].state is ContainerState.EXITED)
    await core.containers.remove(made.id)
    return made.id


async def churn(core: Services, world: World, sandbox: str) -> tuple[list[str], int]:
    """The ids of all that lived, and how many events were held at most."""
    idents: list[str] = []
    held = [0]

    async def some(first: int) -> None:
        for number in range(first, CHURN, AT_ONCE):
            idents.append(await short_life(core, world, sandbox, f"short-{number}"))
            if number % (CHURN // 8) == 0:
                held.append(alive())

    async with anyio.create_task_group() as group:
        for first in range(AT_ONCE):
            group.start_soon(some, first)
    return idents, max(held)


@asynccontextmanager
async def silent(socket: Path) -> AsyncIterator[Any]:
    """A subscriber that reads nothing, with the windows of a Go client."""
    window = Configuration(http2_stream_window_size=65535, http2_connection_window_size=65535)
    channel = Channel(path=str(socket), codec=encoding.WireCodec(), config=window)
    try:
        async with channel.request(EVENTS, Cardinality.UNARY_STREAM, pb.GetEventsRequest, pb.ContainerEventResponse) as stream:
            await stream.send_message(pb.GetEventsRequest(), end=True)
            yield stream
    finally:
        channel.close()


def alive() -> int:
    """Events that somebody holds."""
    return sum(type(one) is ContainerEvent for one in gc.get_objects())


def check_churn(events: list[pb.ContainerEventResponse], idents: list[str]) -> None:
    """Every container's whole life, in order and with its state at each moment."""
    assert len(events) == 4 * CHURN
    times = [event.created_at for event in events]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    lives: dict[str, list[pb.ContainerEventType]] = defaultdict(list)
    states = {CREATED: "CONTAINER_CREATED", STARTED: "CONTAINER_RUNNING", STOPPED: "CONTAINER_EXITED"}
    for event in events:
        lives[event.container_id].append(event.container_event_type)
        assert event.pod_sandbox_status is not None
        assert event.pod_sandbox_status.state is pb.PodSandboxState.SANDBOX_READY
        found = {status.id: status for status in event.containers_statuses}
        if event.container_event_type is DELETED:
            assert event.container_id not in found
        else:
            assert found[event.container_id].state.name == states[event.container_event_type]
        if event.container_event_type is STOPPED:
            assert found[event.container_id].exit_code == 7
    assert lives.keys() == set(idents)
    assert all(life == [CREATED, STARTED, STOPPED, DELETED] for life in lives.values())


@pytest.mark.timeout(300)
async def test_a_thousand_short_containers_with_three_subscribers_one_of_which_never_reads(world: World, core: Services) -> None:
    socket = world.root / "cri.sock"
    readers = Reader(), Reader()
    async with served(core, socket) as (server, cri), connect(socket) as second, anyio.create_task_group() as group:
        await core.events.keep_first(0)
        sandbox = await core.sandboxes.run(pod(), "")
        for reader, client in zip(readers, (cri, second), strict=True):
            await group.start(reader.run, core, client)
        async with silent(socket) as never:
            await until(lambda: core.events.subscribers == 3)
            idents, most = await churn(core, world, sandbox.id)
            await until(lambda: all(len(reader.events) >= 4 * CHURN for reader in readers))
            await until(lambda: core.events.subscribers == 2)
            assert core.events.overflows == 1
            assert most < QUEUE + 200, "no more waits than a queue holds"
            assert alive() < 200, "nothing of what that one did not read is kept"
            got = [event async for event in never]
            with pytest.raises(GRPCError) as ended:
                await never.recv_trailing_metadata()
        assert ended.value.status is Status.RESOURCE_EXHAUSTED
        assert f"{QUEUE} container events" in (ended.value.message or "")
        assert got == readers[0].events[: len(got)], "what came before the end has no gap"
        assert got
        group.cancel_scope.cancel()
    for reader in readers:
        check_churn(reader.events, idents)
    assert server.in_flight == 0
    assert core.events.subscribers == 0


async def test_a_subscriber_that_goes_is_forgotten_and_the_others_hear_on(world: World, core: Services) -> None:
    socket, reader = world.root / "cri.sock", Reader()
    async with served(core, socket) as (server, cri), anyio.create_task_group() as group:
        await group.start(reader.run, core, cri)
        async with connect(socket) as leaving, aclosing(leaving.runtime.get_container_events()) as events:
            sandbox = await core.sandboxes.run(pod(), "")
            assert (await anext(events)).container_id == sandbox.id
        async with silent(socket) as gone:
            await until(lambda: core.events.subscribers == 2)
            await gone.cancel()
        await until(lambda: core.events.subscribers == 1 and server.in_flight == 1)
        await core.sandboxes.remove(sandbox.id)
        await until(lambda: len(reader.events) >= 4)
        group.cancel_scope.cancel()
    assert reader.told == [(sandbox.id, kind) for kind in (CREATED, STARTED, STOPPED, DELETED)]
    assert core.events.subscribers == 0


async def test_an_event_larger_than_a_message_may_be_ends_the_stream_and_says_so(world: World, core: Services) -> None:
    reader = Reader()
    async with served(core, world.root / "cri.sock", 20_000) as (server, cri):
        small = await core.sandboxes.run(pod("small"), "")
        await core.sandboxes.run(pod("large", annotations={"a": "x" * 20_000}), "")
        with pytest.raises(CriError, match=r"the answer has 2\d{4} bytes; at most 20000 may be sent") as ended:
            await reader._read(cri)
        assert ended.value.code is Status.RESOURCE_EXHAUSTED
        assert reader.told == [(small.id, CREATED), (small.id, STARTED)], "those before it"
        await until(lambda: core.events.subscribers == 0 and server.in_flight == 0)


async def test_an_events_snapshot_is_what_the_status_calls_say_and_older_than_the_next_status(world: World, core: Services) -> None:
    reader = Reader()
    async with served(core, world.root / "cri.sock") as (_, cri), anyio.create_task_group() as group:
        await group.start(reader.run, core, cri)
        sandbox = await core.sandboxes.run(pod(labels={"a": "b"}), "")
        first = await core.containers.create(sandbox.id, container("first", annotations={"x": "y"}))
        second = await core.containers.create(sandbox.id, container("second"))
        await core.containers.start(second.id)
        await until(lambda: len(reader.events) == 5)
        status = await cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id))
        each = [await cri.runtime.container_status(pb.ContainerStatusRequest(container_id=one.id)) for one in (first, second)]
        await core.containers.remove(first.id)
        await until(lambda: len(reader.events) == 6)
        again = await cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id, verbose=True))
        group.cancel_scope.cancel()
    started, deleted = reader.events[4:]
    assert (started.container_id, started.container_event_type) == (second.id, STARTED)
    assert started.pod_sandbox_status == status.status
    assert started.containers_statuses == status.containers_statuses == [one.status for one in each]
    assert started.created_at < status.timestamp < deleted.created_at < again.timestamp
    assert [one.id for one in again.containers_statuses] == [second.id]
    assert again.info.keys() == {"info"}
    assert not status.info


async def test_new_resources_are_in_the_status_and_in_the_next_event(world: World, core: Services) -> None:
    reader = Reader()
    async with served(core, world.root / "cri.sock") as (_, cri), anyio.create_task_group() as group:
        await group.start(reader.run, core, cri)
        sandbox = await core.sandboxes.run(pod(), "")
        made = await core.containers.create(sandbox.id, container(resources=Resources(memory_limit_in_bytes=64 << 20)))
        await core.containers.start(made.id)
        await core.resources.update_container(made.id, Resources(memory_limit_in_bytes=128 << 20, cpu_shares=512))
        status = await cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id))
        world.backend.containers[made.id].exit(0)
        await until(lambda: len(reader.events) == 5)
        group.cancel_scope.cancel()
    assert [kind for ident, kind in reader.told if ident == made.id] == [CREATED, STARTED, STOPPED], "an update is no event of its own"
    limits = [[one.resources.linux for one in event.containers_statuses if one.resources] for event in reader.events[2:]]
    shown = [[(one.memory_limit_in_bytes, one.cpu_shares) for one in each if one is not None] for each in limits]
    assert shown == [[(64 << 20, 0)], [(64 << 20, 0)], [(128 << 20, 512)]]
    assert status.containers_statuses[0].resources == reader.events[-1].containers_statuses[0].resources


async def test_what_ended_while_the_server_was_away_is_told_to_who_comes_back(world: World) -> None:
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        idents = []
        for name in ("goes-on", "ends"):
            made = await core.containers.create(sandbox.id, container(name))
            await core.containers.start(made.id)
            idents.append(made.id)
        before = core.events.now()
    world.backend.containers[idents[1]].exit(3)
    async with world.started() as core:
        reader = Reader()
        async with served(core, world.root / "cri.sock") as (_, cri), anyio.create_task_group() as group:
            await core.recovery.run()
            await until(lambda: core.store.containers[idents[1]].state is ContainerState.EXITED)
            await group.start(reader.run, core, cri)  # after it was found
            world.backend.containers[idents[0]].exit(4)
            await until(lambda: len(reader.events) >= 2)
            group.cancel_scope.cancel()
    assert reader.told == [(idents[1], STOPPED), (idents[0], STOPPED)]
    assert [sorted(one.exit_code for one in event.containers_statuses) for event in reader.events] == [[0, 3], [3, 4]]
    assert reader.events[0].created_at > before


async def test_a_pod_that_a_reboot_took_is_told_as_stopped_with_its_containers(world: World) -> None:
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        made = await core.containers.create(sandbox.id, container())
        await core.containers.start(made.id)
    world.backend.containers.clear()
    world.backend.sandboxes.clear()
    world.boot_id = "boot-2"
    async with world.started() as core:
        await core.recovery.run()
        reader = Reader()
        async with served(core, world.root / "cri.sock") as (_, cri), anyio.create_task_group() as group:
            await group.start(reader.run, core, cri)
            await until(lambda: len(reader.events) >= 2)
            group.cancel_scope.cancel()
    assert reader.told == [(made.id, STOPPED), (sandbox.id, STOPPED)]
    assert reader.events[1].pod_sandbox_status is not None
    assert reader.events[1].pod_sandbox_status.state is pb.PodSandboxState.SANDBOX_NOTREADY
