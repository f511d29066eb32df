"""Port-forward for streaming clients over a fake pod: each half by itself, many at once, nothing left."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from bridge.core.services import Services
from bridge.core.stream_requests import PortForwardRequest
from bridge.streaming.serving import CoreSessions
from bridge.testing.fakes import FakeSandbox
from tests.component.conftest import World, pod
from tests.component.memory_channels import Forwards

pytestmark = pytest.mark.root


@dataclass
class Stage:
    core: Services
    fake: FakeSandbox
    idle: float = 60.0

    async def serve(self, client: Forwards) -> None:
        sessions = CoreSessions(self.core.streams, idle_timeout=self.idle, drain=1.0)
        await sessions.port_forward(PortForwardRequest(self.fake.id), client)

    async def accepted(self, count: int = 1) -> socket.socket:
        with anyio.fail_after(5):
            while len(self.fake.connections) < count:
                await anyio.sleep(0.005)
        return self.fake.connections[count - 1][1]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def stage(world: World, core: Services) -> AsyncIterator[Stage]:
    sandbox = await core.sandboxes.run(pod(), "")
    fake = world.backend.sandboxes[sandbox.id]
    fake.ports = {80, 443}
    before = descriptors()
    yield Stage(core, fake)
    for _, sock in fake.connections:
        sock.close()
    assert descriptors() == before


async def received(sock: socket.socket, count: int) -> bytes:
    data = b""
    with anyio.fail_after(5):
        while len(data) < count:
            await anyio.wait_readable(sock)
            piece = sock.recv(count - len(data))
            if not piece:
                break
            data += piece
    return data


async def test_both_ways_and_each_half_by_itself(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        data, error = client.open(80)
        await data.send(b"GET /")
        server = await stage.accepted()
        assert await received(server, 5) == b"GET /"
        data.end()
        assert await received(server, 1) == b"", "the client's end is the pod's"
        server.send(b"the answer")
        await data.until(b"the answer")
        assert not data.closed
        server.close()
        assert await data.until_closed() == b"the answer"
        assert await error.until_closed() == b""
        client.leave()


async def test_a_request_that_is_there_at_once(stage: Stage) -> None:
    client = Forwards()
    data, error = client.open(80)
    await data.send(b"GET /")
    data.end()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        server = await stage.accepted()
        assert await received(server, 6) == b"GET /"
        server.send(b"the answer")
        await data.until(b"the answer")
        assert not data.closed
        server.close()
        assert await data.until_closed() == b"the answer"
        assert await error.until_closed() == b""
        client.leave()


async def test_a_pod_that_answers_before_it_has_read(stage: Stage) -> None:
    """More is there at once than the pod's socket takes: what the pod says must not wait for that."""
    client = Forwards()
    data, _ = client.open(80)
    await data.send(bytes(8 << 20))
    data.end()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        server = await stage.accepted()
        server.send(b"too much")
        await data.until(b"too much")
        server.close()
        await data.until_closed()
        client.leave()


async def test_the_pods_end_is_the_clients(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        data, error = client.open(80)
        server = await stage.accepted()
        server.shutdown(socket.SHUT_WR)
        await data.until_closed()
        await error.until_closed()  # kubectl before 1.26 closes its half only after that
        await data.send(b"still")
        assert await received(server, 5) == b"still"
        data.end()
        assert await received(server, 1) == b""
        client.leave()


async def test_a_pod_that_hangs_up_while_the_client_sends_on(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        data, error = client.open(80)
        (await stage.accepted()).close()
        with anyio.fail_after(5):
            for _ in range(64):
                await data.send(bytes(65536))
        data.end()
        assert await error.until_closed() == b"", "kubectl would take a word here for the end of all its connections"
        client.leave()


async def test_a_refusal_is_told_in_words_and_the_session_goes_on(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        data, error = client.open(81)
        assert b"can't connect to port 81" in await error.until_closed()
        assert b"connection refused" in error.got
        assert data.closed
        with anyio.fail_after(5):
            for _ in range(20):
                await data.send(bytes(65536))
        other, _ = client.open(443)
        (await stage.accepted()).send(b"hi")
        await other.until(b"hi")
        client.leave()


async def test_many_at_once(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        pairs = [client.open(80) for _ in range(500)]
        await stage.accepted(500)
        for number, (_, server) in enumerate(stage.fake.connections):
            server.send(b"%d" % number)
            server.close()
        for data, error in pairs:
            data.end()
            await error.until_closed()
        assert sorted(int(data.got) for data, _ in pairs) == list(range(500))
        client.leave()


async def test_a_client_that_leaves_takes_its_connections_along(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        client.open(80)
        server = await stage.accepted()
        client.leave()
    assert await received(server, 1) == b""


async def test_an_idle_session_ends(stage: Stage) -> None:
    stage.idle = 0.3
    client = Forwards()
    client.open(80)
    with anyio.fail_after(5):
        await stage.serve(client)
    assert await received(await stage.accepted(), 1) == b""


async def test_a_pod_that_stops_meanwhile(stage: Stage) -> None:
    client = Forwards()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.serve, client)
        await stage.core.sandboxes.stop(stage.fake.id)
        _, error = client.open(80)
        assert b"is stopped, not ready" in await error.until_closed()
        client.leave()
