"""SPDY sessions on a connection in memory: back-pressure both ways, lost connections, the streams of commands and port-forwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from bridge.streaming import spdy_session as session_module
from bridge.streaming import spdy_streams
from bridge.streaming.channels import ConnectionLost, ForwardedConnection
from bridge.streaming.spdy import INITIAL_WINDOW, SpdyMachine
from bridge.streaming.spdy_events import DataReceived, PingAnswered, StreamReset
from bridge.streaming.spdy_frames import Kind, control, words
from bridge.streaming.spdy_session import FORWARD_HIGH, FRAMES, SEND_HIGH, SESSION_HIGH, STREAM_HIGH, SpdySession, spdy_session
from bridge.streaming.spdy_streams import ForwardedStreams, remote_command
from tests.unit.streaming.memory_wire import MemoryWire, wires


@asynccontextmanager
async def both() -> AsyncIterator[tuple[SpdySession, SpdyMachine, MemoryWire]]:
    """A server's session, and a client's machine with its end of the wire, to be driven by hand."""
    ours, theirs = wires()
    async with spdy_session(ours) as session:
        yield session, SpdyMachine(client=True), theirs
        await theirs.close()


async def say(client: SpdyMachine, wire: MemoryWire) -> None:
    await wire.send(client.to_send())


async def test_bytes_go_both_ways_and_halves_close() -> None:
    async with both() as (session, client, wire):
        number = client.open([("streamType", "stdin")])
        client.send(number, b"hello", end=True)
        await say(client, wire)
        channel = await session.accept()
        assert channel.headers == {"streamtype": "stdin"}
        assert (await channel.read(), await channel.read(), await channel.read()) == (b"hello", b"", b"")
        await channel.write(b"answer")
        await channel.close()
        await channel.close()
        await channel.write(b"dropped")
        events = client.receive(await wire.receive())
        while not (isinstance(events[-1], DataReceived) and events[-1].end):
            events += client.receive(await wire.receive())
        assert b"".join(event.data for event in events if isinstance(event, DataReceived)) == b"answer"
        assert session.streams == 0


async def test_a_client_that_does_not_read_costs_a_bounded_buffer() -> None:
    async with both() as (session, client, wire):
        client.open([("streamType", "stdout")])
        await say(client, wire)
        channel = await session.accept()
        with anyio.move_on_after(0.2) as scope:
            for _ in range(1000):
                await channel.write(bytes(65536))
        assert scope.cancelled_caught
        assert session.machine.pending < SEND_HIGH + 2 * 65536


async def test_a_stream_that_nobody_reads_stops_the_socket_not_the_memory() -> None:
    async with both() as (session, client, wire):
        number = client.open([("streamType", "stdin")])
        sent = 0
        with anyio.move_on_after(0.2) as scope:
            while True:
                client.send(number, bytes(65536))
                await say(client, wire)
                sent += 65536
        assert scope.cancelled_caught
        channel = await session.accept()
        assert STREAM_HIGH <= channel.unread <= STREAM_HIGH + 65536
        assert sent < SESSION_HIGH
        got = 0
        while got < sent:
            got += len(await channel.read())
        assert channel.unread <= 65536


async def test_a_forwarded_connection_that_nobody_reads_holds_up_its_session_late() -> None:
    """A client that keeps no windows sends all its streams in one line: what is behind can't be had without what is ahead."""
    ours, theirs = wires(room=1000)
    client = SpdyMachine(client=True)
    async with spdy_session(ours, stream_high=FORWARD_HIGH) as session:
        stuck, other = client.open([("streamType", "data")]), client.open([("streamType", "data")])
        client.send(stuck, bytes(FORWARD_HIGH - 65536))
        client.send(other, b"not held up")
        await say(client, theirs)
        unread, fine = await session.accept(), await session.accept()
        with anyio.fail_after(30):
            assert await fine.read() == b"not held up"
        client.send(stuck, bytes(SESSION_HIGH))
        client.send(other, b"behind it")
        await say(client, theirs)
        with anyio.move_on_after(0.2) as held:
            await fine.read()
        assert held.cancelled_caught
        assert FORWARD_HIGH <= unread.unread <= FORWARD_HIGH + 65536, "what it holds is bounded"
        got = 0
        with anyio.fail_after(30):
            while got < FORWARD_HIGH - 65536 + SESSION_HIGH:
                got += len(await unread.read())
            assert await fine.read() == b"behind it"
        await theirs.close()


async def test_a_client_that_keeps_windows_is_held_up_in_one_stream_alone() -> None:
    async with both() as (session, client, wire):
        client.receive(control(Kind.SETTINGS, words(1) + words(7, INITIAL_WINDOW)))  # from here on this client keeps them
        stuck, other = client.open([("streamType", "data")]), client.open([("streamType", "data")])
        client.receive(control(Kind.WINDOW_UPDATE, words(0, 1 << 20)))
        client.send(stuck, bytes(client.room(stuck)))
        assert client.room(stuck) == 0
        assert client.room(other) == INITIAL_WINDOW
        got = 0
        with anyio.fail_after(30):
            await say(client, wire)
            unread, fine = await session.accept(), await session.accept()
            while got < 4 * STREAM_HIGH:
                client.send(other, bytes(client.room(other)))
                await say(client, wire)
                got += len(await fine.read())
                while not client.room(other):
                    client.receive(await wire.receive())
        assert (unread.unread, client.room(stuck)) == (INITIAL_WINDOW, 0)


async def test_streams_that_are_reset_at_once_are_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "OPENINGS", 100)
    async with both() as (_, client, wire):
        for _ in range(250):
            client.reset(client.open([("streamType", "data")]))
        began = anyio.current_time()
        with anyio.fail_after(30):
            await say(client, wire)
            last = client.ping()
            await say(client, wire)
            while PingAnswered(last) not in client.receive(await wire.receive()):
                pass
        assert anyio.current_time() - began >= 1.4, "100 at once and 100 a second"


async def test_others_have_their_turn_within_a_piece_of_many_frames() -> None:
    async with both() as (session, _client, _wire):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(count)
            await session._take_frames(b"".join(control(Kind.PING, words(number)) for number in range(1, 20 * FRAMES, 2)))
            group.cancel_scope.cancel()
        assert turns >= 9


async def test_what_comes_is_answered_while_we_can_not_send() -> None:
    """Both sides write without reading: receiving goes on, so nobody is locked out for good."""
    async with both() as (session, client, wire):
        number = client.open([("streamType", "x")])
        await say(client, wire)
        channel = await session.accept()
        async with anyio.create_task_group() as group:
            group.start_soon(channel.write, bytes(4 << 20))
            await anyio.wait_all_tasks_blocked()
            client.send(number, b"still heard", end=True)
            await say(client, wire)
            with anyio.fail_after(30):
                assert await channel.read() == b"still heard"
            group.cancel_scope.cancel()


async def test_a_lost_connection_cancels_the_block() -> None:
    ours, theirs = wires()
    reached = False
    with anyio.fail_after(30):
        async with spdy_session(ours) as session:
            await theirs.close()
            await anyio.sleep_forever()
            reached = True
        with pytest.raises(ConnectionLost):
            session.check()
    assert not reached


async def test_a_client_that_breaks_the_rules_is_told_and_left() -> None:
    ours, theirs = wires()
    with anyio.fail_after(30):
        async with spdy_session(ours):
            await theirs.send(b"\x80\x02\x00\x01\x00\x00\x00\x00")
            await anyio.sleep_forever()
    assert (await theirs.receive())[:4] == b"\x80\x03\x00\x07"  # GOAWAY


async def test_the_blocks_own_error_passes_through() -> None:
    ours, theirs = wires()
    with pytest.raises(LookupError, match="mine"):
        async with spdy_session(ours):
            raise LookupError("mine")
    await theirs.close()


async def test_a_reset_by_the_client_ends_reading_and_drops_writing() -> None:
    async with both() as (session, client, wire):
        number = client.open([("streamType", "stdin")])
        client.reset(number)
        await say(client, wire)
        channel = await session.accept()
        with anyio.fail_after(30):
            assert await channel.read() == b""
            await channel.write(b"nobody")
            await channel.close()
        assert session.streams == 0


# Commands


async def test_a_command_waits_for_its_streams_and_refuses_others() -> None:
    async with both() as (session, client, wire):
        for kind in ("error", "stdout", "stdout", "stdin", "bogus", "resize"):
            client.open([("streamType", kind)])
        await say(client, wire)
        with anyio.fail_after(30):
            command = await remote_command(session, frozenset(("stdout", "resize")), structured=True)
        assert command.stdout is not None
        assert command.resize is not None
        assert (command.stdin, command.stderr, command.structured) == (None, None, True)
        resets: list[int] = []
        while len(resets) < 3:
            resets += [event.stream for event in client.receive(await wire.receive()) if isinstance(event, StreamReset)]
        assert resets == [5, 7, 9]


async def test_a_client_that_opens_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy_streams, "OPENING_SECONDS", 0.1)
    ours, theirs = wires()
    client = SpdyMachine(client=True)
    async with spdy_session(ours) as session:
        client.open([("streamType", "stdout")])
        await say(client, theirs)
        with pytest.raises(ConnectionLost, match=r"no error and no stdin stream within 0\.1 s"):
            await remote_command(session, frozenset(("stdin", "stdout")), structured=False)


# Port-forward


async def pairs(session: SpdySession, count: int) -> list[ForwardedConnection]:
    found: list[ForwardedConnection] = []
    with anyio.fail_after(30):
        async for pair in ForwardedStreams(session):
            found.append(pair)
            if len(found) == count:
                break
    return found


async def test_pairs_by_request_id_in_any_order_and_without_one_by_number() -> None:
    async with both() as (session, client, wire):
        for kind, request in (("error", "0"), ("error", "1"), ("data", "1"), ("data", "0")):
            client.open([("streamType", kind), ("port", f"{8000 + int(request)}"), ("requestID", request)])
        for kind in ("error", "data"):
            client.open([("streamType", kind), ("port", "80")])
        await say(client, wire)
        assert [pair.port for pair in await pairs(session, 3)] == [8001, 8000, 80]


@pytest.mark.parametrize("port", ["", "0", "65536", "8O", "-1", "99999999"])
async def test_ports_that_are_none_are_refused(port: str) -> None:
    async with both() as (session, client, wire):
        client.open([("streamType", "error"), ("port", port), ("requestID", "0")])
        for kind in ("error", "data"):
            client.open([("streamType", kind), ("port", "7"), ("requestID", "1")])
        await say(client, wire)
        (pair,) = await pairs(session, 1)
        assert pair.port == 7
        assert StreamReset(1, 1) in client.receive(await wire.receive())


async def test_two_halves_that_do_not_fit() -> None:
    async with both() as (session, client, wire):
        for kind, port in (("error", "7"), ("error", "7"), ("data", "8"), ("error", "9"), ("data", "5"), ("error", "5")):
            client.open([("streamType", kind), ("port", port), ("requestID", "x")])
        await say(client, wire)
        (pair,) = await pairs(session, 1)
        assert pair.port == 5


async def test_a_half_that_stays_alone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy_streams, "OPENING_SECONDS", 0.1)
    async with both() as (session, client, wire):
        client.open([("streamType", "data"), ("port", "7"), ("requestID", "x")])
        await say(client, wire)
        async with anyio.create_task_group() as group:
            group.start_soon(pairs, session, 1)
            with anyio.fail_after(30):
                while StreamReset(1, 5) not in client.receive(await wire.receive()):
                    pass
            group.cancel_scope.cancel()


async def test_many_connections_one_after_another_leave_nothing() -> None:
    async with both() as (session, client, wire):
        streams = ForwardedStreams(session)
        for request in range(300):
            for kind in ("error", "data"):
                number = client.open([("streamType", kind), ("port", "7"), ("requestID", str(request))])
                client.send(number, b"", end=True)
            await say(client, wire)
            async for pair in streams:
                await pair.data.close()
                await pair.error.close()
                break
            client.receive(await wire.receive())
        assert session.streams == 0
