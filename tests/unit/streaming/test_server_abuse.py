"""What hostile clients do to the stream server: each meets its limit, and a user who comes meanwhile is served as ever."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import socket
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from wsproto.events import CloseConnection, Ping

from bridge.core.stream_requests import ExecRequest, Stdio
from bridge.streaming import server as server_module
from bridge.streaming.server import MAX_WAITING, StreamServer
from bridge.streaming.spdy_events import PingAnswered, StreamAnswered
from bridge.streaming.spdy_frames import DICTIONARY, Kind, control, data_head, words
from tests.unit.streaming.stream_client import (
    CAT,
    FORWARD,
    Client,
    EchoSessions,
    SpdyClient,
    asking,
    connected,
    place,
    request,
    serving,
    spdy_command,
    spdy_headers,
    until,
    websocket,
    websocket_headers,
)

V4 = spdy_headers("v4.channel.k8s.io")


async def assert_others_are_served(server: StreamServer, *, within: float = 2.0) -> None:
    """One whole exec over either transport."""
    with anyio.fail_after(within):
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, stream):
            spdy.machine.send(stream["stdin"], b"well?", end=True)
            await spdy.flush()
            await spdy.take_until_end(stream["stdout"], stream["error"])
            assert spdy.data(stream["stdout"]) == b"well?"
        async with websocket(server.url(CAT), "v5.channel.k8s.io") as client:
            await client.send(b"\x00well?")
            await client.take_until(2)


@asynccontextmanager
async def forwarding(server: StreamServer) -> AsyncIterator[SpdyClient]:
    async with asking(server.url(FORWARD), *spdy_headers("portforward.k8s.io")) as client:
        assert client.status == 101
        yield SpdyClient(client)


async def push(client: Client, data: bytes, times: int, seconds: float = 2.0) -> bool:
    """Send ``data`` over and over, without reading; True when the server takes no more or hangs up before it is through."""
    with anyio.move_on_after(seconds):
        try:
            for _ in range(times):
                await client.send(data)
        except ConnectionError:
            return True
        return False
    return True


# Tokens


async def test_wrong_used_expired_and_guessed_tokens_get_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (server, sessions):
        good = server.url(FORWARD)
        async with asking(good, *spdy_headers("portforward.k8s.io")) as client:
            assert client.status == 101
        expired = server.url(CAT)
        clock = server._tokens._clock() + 61
        answers = set()
        misplaced = server.url(CAT).replace("/exec/", "/attach/")
        for url in (good, good[:-1] + "_", misplaced, server.base_url + "/exec/" + "A" * 43, server.base_url + "/exec/"):
            async with asking(url, *V4) as client:
                answers.add(client.answer)
        monkeypatch.setattr(server._tokens, "_clock", lambda: clock)
        async with asking(expired, *V4) as client:
            answers.add(client.answer)
        assert len(answers) == 1
        assert answers.pop().startswith(b"HTTP/1.1 404 Not Found\r\n")
        async with asking(misplaced.replace("/attach/", "/exec/"), *V4) as client:
            assert client.status == 404, "a token that was tried in the wrong place is used up"
        assert sessions.requests == [FORWARD]


# Requests that never become whole


async def test_a_request_has_ten_seconds_however_it_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.4)
    async with serving() as (server, _), connected(server.base_url + "/") as client:
        began = anyio.current_time()
        async with anyio.create_task_group() as group:

            async def trickle() -> None:
                for byte in request(server.url(CAT), *V4, "X-Slow: yes"):
                    await client.send(bytes([byte]))
                    await anyio.sleep(0.05)

            async def guarded() -> None:
                try:
                    await trickle()
                except ConnectionError:
                    return

            group.start_soon(guarded)
            assert await client.is_hung_up_on()
            assert server.waiting == 0
            assert 0.3 < anyio.current_time() - began < 2
            await assert_others_are_served(server)
            group.cancel_scope.cancel()


@pytest.fixture
def many_files() -> Iterator[int]:
    """10 000 connections, or as many as the host's limit of open files allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield min(10_000, min(hard, 16384) - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_ten_thousand_half_open_connections_give_way_to_who_asks(many_files: int) -> None:
    """Clients that never read: all of them stay with the kernel, while the server keeps those that came last and hangs up on the others."""
    async with serving() as (server, _):
        host, port, _ = place(server.base_url + "/")
        loop = asyncio.get_running_loop()
        before = len(os.listdir("/proc/self/fd"))
        held: list[socket.socket] = []
        try:
            for number in range(many_files):
                client = socket.socket()
                held.append(client)
                client.setblocking(False)
                await loop.sock_connect(client, (host, port))
                if number % 2:
                    client.send(b"GET /exec/AAAA HTTP/1.1\r\nHo")
                assert server.waiting <= MAX_WAITING
                if number % 2000 == 1999:
                    await assert_others_are_served(server, within=10)
            await until(lambda: len(os.listdir("/proc/self/fd")) - before - many_files <= MAX_WAITING + 8)
        finally:
            for client in held:
                client.close()
        await until(lambda: server.waiting == 0)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_clients_that_do_not_hang_up_after_a_refusal_count_as_waiting() -> None:
    async with serving() as (server, _):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(asking(server.base_url + "/exec/no", *V4)) for _ in range(20)]
            assert {client.status for client in clients} == {404}
            assert server.waiting == 20
        await until(lambda: server.waiting == 0)


async def test_no_more_sessions_than_configured() -> None:
    async with serving(sessions=2) as (server, sessions):
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(websocket(server.url(CAT), "v4.channel.k8s.io"))
            await until(lambda: sessions.running == 2)
            late = server.url(CAT)
            async with asking(late, *V4) as client:
                assert client.status == 503
                assert b"Retry-After: 10" in client.answer
        await until(lambda: server.sessions == 0)
        async with asking(late, *V4) as client:
            assert client.status == 101, "its token was not used up"


async def test_a_server_out_of_descriptors_lets_one_go_that_keeps_it_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "gone")]

    async def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        accepted = await accept(listener)
        if server.waiting == 2 and failures:
            accepted[0].close()
            raise failures.pop(0)
        return accepted

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with serving() as (server, _):
        async with connected(server.base_url + "/") as oldest, connected(server.base_url + "/"):
            await until(lambda: server.waiting == 2)
            async with connected(server.base_url + "/"):
                assert await oldest.is_hung_up_on()
                await assert_others_are_served(server)
        assert failures
        await until(lambda: server.waiting == 0)


async def test_whatever_keeps_a_client_from_being_accepted_the_next_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [RuntimeError("a defect"), OSError(errno.ECONNABORTED, "gone")]

    async def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        accepted = await accept(listener)
        if failures:
            accepted[0].close()
            raise failures.pop()
        return accepted

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with serving() as (server, _):
        for _ in range(2):
            async with connected(server.base_url + "/") as refused:
                assert await refused.is_hung_up_on()
        assert not failures
        await assert_others_are_served(server)


# SPDY


async def test_frames_and_header_blocks_that_are_too_large() -> None:
    bomb = zlib.compressobj(zdict=DICTIONARY)
    block = bomb.compress(bytes(50 << 20)) + bomb.flush(zlib.Z_SYNC_FLUSH)
    assert len(block) < 60_000
    async with serving() as (server, sessions):
        for frame in (
            struct.pack(">II", 0x80030001, 0x00FFFFFF),  # a control frame of 16 MiB
            control(Kind.SYN_STREAM, words(1, 0) + bytes(2) + block),
            control(Kind.SYN_STREAM, words(1, 0) + bytes(2) + b"no zlib"),
            struct.pack(">II", 0x80020001, 0),  # SPDY/2
        ):
            async with forwarding(server) as spdy:
                await spdy.client.send(frame)
                assert await spdy.client.is_hung_up_on()
            await assert_others_are_served(server)
        await until(lambda: sessions.running == 0)


async def test_streams_that_are_opened_and_reset_at_once_do_not_add_up() -> None:
    """How they are slowed down: test_spdy_session."""
    async with serving() as (server, sessions), forwarding(server) as spdy:
        for _ in range(10):
            for number in range(500):
                spdy.machine.reset(spdy.open(streamType="data", port="80", requestID=str(number)))
            await spdy.flush()
            await assert_others_are_served(server, within=10)
        asked = spdy.machine.ping()
        await spdy.flush()
        with anyio.fail_after(20):
            while PingAnswered(asked) not in spdy.events:
                await spdy.take()
        assert sum(isinstance(event, StreamAnswered) for event in spdy.events) <= 5000
        assert sessions.running == 1


async def test_streams_that_stay_open_are_bounded() -> None:
    async with serving() as (server, _), spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, _):
        for _ in range(1500):
            spdy.open(streamType="data")
        await spdy.flush()
        refused = 0
        with anyio.fail_after(10):
            while refused < 1500 - 1020:
                await spdy.take()
                refused = sum(type(event).__name__ == "StreamReset" for event in spdy.events)
        await assert_others_are_served(server)


async def test_a_flood_of_pings_whose_answers_nobody_takes_ends() -> None:
    async with serving() as (server, sessions), forwarding(server) as spdy:
        pings = b"".join(control(Kind.PING, words(number)) for number in range(1, 10_001, 2))
        await push(spdy.client, pings, 1000)
        await until(lambda: sessions.running == 0)
        await assert_others_are_served(server)


class Deaf(EchoSessions):
    """Its commands never read their input."""

    async def exec(self, request: ExecRequest, command: object) -> None:
        await anyio.sleep_forever()


async def test_bytes_in_frames_of_their_own_cost_no_more_than_their_bound() -> None:
    """Nobody reads this stdin: 300 000 frames of two bytes."""
    async with StreamServer.open(server_module.StreamSettings(), Deaf()) as server:
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, stream):
            frames = (data_head(stream["stdin"], 2, end=False) + b"ab") * 1000
            gc.collect()
            tracemalloc.start()
            try:
                assert not await push(spdy.client, frames, 100), "so much is taken"
                assert await push(spdy.client, frames, 3000), "no more is"
                used, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert used < 4 << 20


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_input_that_nobody_reads_costs_no_more_than_its_bound(transport: str) -> None:
    async with StreamServer.open(server_module.StreamSettings(), Deaf()) as server, AsyncExitStack() as stack:
        if transport == "spdy":
            streams = ("error", "stdin", "stdout", "stderr")
            spdy, stream = await stack.enter_async_context(spdy_command(server.url(CAT), *streams))
            client, frame = spdy.client, data_head(stream["stdin"], 60_000, end=False) + bytes(60_000)
        else:
            client = await stack.enter_async_context(asking(server.url(CAT), *websocket_headers("v4.channel.k8s.io")))
            frame = struct.pack(">BBHI", 0x82, 0xFE, 60_001, 0) + bytes(60_001)  # masked with zeros
        gc.collect()
        tracemalloc.start()
        try:
            assert await push(client, frame, 2000), "not all is taken"
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert used < 4 << 20


# Clients that do not read


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_a_client_that_never_reads_costs_a_bounded_buffer(transport: str) -> None:
    written = 0

    class Gushing(EchoSessions):
        async def exec(self, request: ExecRequest, command: object) -> None:
            nonlocal written
            while written < 64 << 20:  # a server without bounds shall fail this test, not the machine
                await command.stdout.write(bytes(65536))  # type: ignore[attr-defined]
                written += 65536
                await anyio.lowlevel.checkpoint()
            await anyio.sleep_forever()

    gush = ExecRequest("c", ("yes",), Stdio(stdout=True))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(StreamServer.open(server_module.StreamSettings(), Gushing()))
        if transport == "spdy":
            await stack.enter_async_context(spdy_command(server.url(gush), "error", "stdout"))
        else:
            await stack.enter_async_context(asking(server.url(gush), *websocket_headers("v4.channel.k8s.io")))
        before = -1
        with anyio.fail_after(10):
            while written != before:
                before = written
                await anyio.sleep(0.3)
        assert 0 < written < 16 << 20, "two sockets' buffers of the kernel, and ours"


@pytest.mark.parametrize("rude", [True, False])
async def test_a_client_that_has_left_is_noticed_while_its_input_is_not_read(rude: bool) -> None:
    class Deaf(EchoSessions):
        async def exec(self, request: ExecRequest, command: object) -> None:
            self.running += 1
            try:
                await anyio.sleep_forever()
            finally:
                self.running -= 1

    sessions = Deaf()
    async with StreamServer.open(server_module.StreamSettings(), sessions) as server:
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, stream):
            await push(spdy.client, data_head(stream["stdin"], 65536, end=False) + bytes(65536), 6)
            await until(lambda: sessions.running == 1)
            if rude:
                spdy.client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                spdy.client.writer.transport.abort()
        await until(lambda: sessions.running == 0)


async def test_pings_in_a_websocket_whose_answers_nobody_takes_are_bounded() -> None:
    async with serving() as (server, sessions):
        async with websocket(server.url(CAT), "v4.channel.k8s.io") as client:
            ping = client.machine.send(Ping(payload=bytes(125)))
            await push(client.client, ping * 500, 1000)
            await assert_others_are_served(server)
        await until(lambda: sessions.running == 0)


async def test_a_message_without_end_is_passed_on_as_it_comes() -> None:
    async with serving() as (server, _sessions), websocket(server.url(CAT), "v4.channel.k8s.io") as client:
        await client.client.send(struct.pack(">BBQI", 0x82, 0xFF, 1 << 62, 0) + b"\x00begin")
        await client.take_until(2)
        assert client.messages[1] == b"\x01begin"
        await client.client.send(b"more")
        await client.take_until(3)
        assert client.messages[2] == b"\x01more"


async def test_a_close_frame_ends_the_session() -> None:
    async with serving() as (server, sessions), websocket(server.url(CAT), "v4.channel.k8s.io") as client:
        await client.take_until(1)
        await client.send(CloseConnection(code=1001, reason="going"))
        await until(lambda: sessions.running == 0)
        await client.take_all()
        assert client.close_code == 1001
