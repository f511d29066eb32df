"""Streams in each direction, as the specification draws them: messages, empty messages, ends, errors, limits, losses."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from betterproto2 import Message

from bridge import errors
from bridge._proto.containerd.task.v2 import StateRequest, StateResponse, WaitRequest, WaitResponse
from bridge._proto.ttrpc import Request, Response
from bridge.aio import Supervisor
from bridge.errors import CorruptData, IllegalTransition, LimitExceeded, NotFound, ShimGone
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import decode
from bridge.shimv2.frames import MAX_DATA, Decoder, Flags, Frame, Kind, encode
from bridge.shimv2.server import Services, Streaming, serve_connection
from bridge.shimv2.streams import ServerStream

SECONDS = 20.0
SERVICE = "test.Streams"


class Streams:
    """One method a direction, and one that fails half-way."""

    def __init__(self) -> None:
        self.cancelled = anyio.Event()

    def services(self) -> Services:
        methods = {"Sum": self.sum, "Count": self.count, "Echo": self.echo, "Fail": self.fail, "Hang": self.hang}
        return {SERVICE: {name: Streaming(WaitResponse, run) for name, run in methods.items()}}

    async def sum(self, stream: ServerStream[WaitResponse]) -> Message | None:
        return WaitResponse(exit_status=sum([message.exit_status async for message in stream]))

    async def count(self, stream: ServerStream[WaitResponse]) -> Message | None:
        async for message in stream:
            for number in range(message.exit_status):
                stream.send(WaitResponse(exit_status=number))
        return None

    async def echo(self, stream: ServerStream[WaitResponse]) -> Message | None:
        async for message in stream:
            stream.send(message)
        return None

    async def fail(self, stream: ServerStream[WaitResponse]) -> Message | None:
        stream.send(WaitResponse(exit_status=1))
        raise errors.NotFound("half-way")

    async def hang(self, stream: ServerStream[WaitResponse]) -> Message | None:
        try:
            async for _ in stream:
                pass
            await anyio.sleep_forever()
        except (ShimGone, anyio.get_cancelled_exc_class()):
            self.cancelled.set()
            raise
        return None


@asynccontextmanager
async def connected(streams: Streams | None = None) -> AsyncIterator[TtrpcClient]:
    ours, theirs = socket.socketpair()
    async with Supervisor() as tasks:
        tasks.spawn("serve", partial(serve_connection, theirs, (streams or Streams()).services()))
        client = TtrpcClient(ours, handler="vm", metadata={})
        try:
            with anyio.fail_after(SECONDS):
                yield client
        finally:
            client.close()


def number(value: int) -> WaitResponse:
    return WaitResponse(exit_status=value)


async def test_many_messages_one_answer() -> None:
    async with connected() as client, client.stream(SERVICE, "Sum", None, WaitResponse, sends=True) as stream:
        for value in (1, 0, 41):  # zero is an empty message, and still one
            stream.send(number(value))
        stream.close_sending()
        assert [answer async for answer in stream] == [number(42)]
        with pytest.raises(IllegalTransition):
            stream.send(number(1))


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_one_message_many_answers(count: int) -> None:
    async with connected() as client, client.stream(SERVICE, "Count", number(count), WaitResponse, sends=False) as stream:
        assert [answer.exit_status async for answer in stream] == list(range(count))
        assert [answer async for answer in stream] == []


async def test_messages_both_ways_in_turn() -> None:
    async with connected() as client, client.stream(SERVICE, "Echo", None, WaitResponse, sends=True) as stream:
        for value in (3, 0, 7):
            stream.send(number(value))
            assert await anext(stream) == number(value)
        stream.close_sending()
        assert [answer async for answer in stream] == []


async def test_an_error_comes_after_what_was_sent_before_it() -> None:
    async with connected() as client, client.stream(SERVICE, "Fail", number(0), WaitResponse, sends=False) as stream:
        assert await anext(stream) == number(1)
        with pytest.raises(NotFound, match=r"test\.Streams/Fail: half-way"):
            await anext(stream)
        assert [answer async for answer in stream] == []


async def test_leaving_a_stream_early_leaves_the_connection_usable() -> None:
    async with connected() as client:
        async with client.stream(SERVICE, "Echo", None, WaitResponse, sends=True) as stream:
            stream.send(number(1))
        async with client.stream(SERVICE, "Count", number(9), WaitResponse, sends=False) as stream:
            assert await anext(stream) == number(0)
        async with client.stream(SERVICE, "Sum", number(5), WaitResponse, sends=True) as stream:
            stream.close_sending()
            assert [answer async for answer in stream] == [number(5)]
        assert client._streams == {}


async def test_losing_the_caller_ends_his_streams() -> None:
    streams = Streams()
    async with connected(streams) as client, client.stream(SERVICE, "Hang", None, WaitResponse, sends=True) as stream:
        client.close()
        with pytest.raises(ShimGone, match="Hang"):
            await anext(stream)
        with pytest.raises(ShimGone, match="Hang"):
            stream.send(number(1))
        await streams.cancelled.wait()


async def test_a_message_that_is_too_long_is_not_sent_and_the_stream_goes_on() -> None:
    async with connected() as client, client.stream(SERVICE, "Sum", None, WaitResponse, sends=True) as stream:
        with pytest.raises(LimitExceeded):
            stream.send(StateResponse(bundle="x" * MAX_DATA))
        stream.send(number(2))
        stream.close_sending()
        assert await anext(stream) == number(2)


@asynccontextmanager
async def by_hand(
    *, sends: bool, request: Message | None = None
) -> AsyncIterator[tuple[AsyncIterator[StateRequest], socket.socket, Frame]]:
    """A client's stream whose other side is a bare socket; with the request's frame."""
    ours, theirs = socket.socketpair()
    client = TtrpcClient(ours, handler="vm", metadata={})
    try:
        with anyio.fail_after(SECONDS):
            async with client.stream(SERVICE, "Any", request, StateRequest, sends=sends) as stream:
                (frame,) = Decoder().feed(theirs.recv(65536))
                assert isinstance(frame, Frame)
                yield stream, theirs, frame
    finally:
        client.close()
        theirs.close()


@pytest.mark.parametrize(("sends", "flags"), [(True, Flags.REMOTE_OPEN), (False, Flags.REMOTE_CLOSED)])
async def test_the_request_says_whether_data_follows(sends: bool, flags: Flags) -> None:
    async with by_hand(sends=sends, request=WaitRequest(id="x")) as (_, _sock, frame):
        assert (frame.stream, frame.kind, frame.flags) == (1, Kind.REQUEST, flags)
        assert decode(Request, frame.data).payload == bytes(WaitRequest(id="x"))


def data(flags: int, payload: bytes = b"") -> bytes:
    return encode(1, Kind.DATA, flags, payload)


RESPONSE = encode(1, Kind.RESPONSE, 0, bytes(Response(payload=bytes(StateRequest(id="r")))))
A = bytes(StateRequest(id="a"))


@pytest.mark.parametrize(
    ("wire", "ids"),
    [
        (data(0, A) + data(0) + data(Flags.REMOTE_CLOSED | Flags.NO_DATA), ["a", ""]),
        (data(0, A) + data(Flags.REMOTE_CLOSED, A), ["a", "a"]),
        (data(Flags.NO_DATA) + data(0, A) + encode(1, Kind.RESPONSE, 0, b""), ["a"]),
        (RESPONSE, ["r"]),
        (encode(1, 77, 0, b"?") + RESPONSE + data(0, A), ["r"]),
    ],
)
async def test_what_the_flags_of_answers_mean(wire: bytes, ids: list[str]) -> None:
    for at in range(len(wire) + 1):
        async with by_hand(sends=False) as (stream, sock, _):
            sock.sendall(wire[:at])
            sock.sendall(wire[at:])
            assert [message.id async for message in stream] == ids


async def test_a_message_that_is_none_is_an_error() -> None:
    async with by_hand(sends=False) as (stream, sock, _):
        sock.sendall(data(0, b"\x0a\x05a"))
        with pytest.raises(CorruptData, match="StateRequest"):
            await anext(stream)


async def test_answers_that_nobody_reads_end_their_stream_and_no_other() -> None:
    async with by_hand(sends=False) as (stream, sock, _):
        await anyio.to_thread.run_sync(sock.sendall, data(0, A) * 1025)
        await _taken(sock)
        assert len([await anext(stream) for _ in range(1024)]) == 1024
        with pytest.raises(LimitExceeded, match="not read"):
            await anext(stream)


async def _taken(sock: socket.socket) -> None:
    """Return once the client has taken all that was sent (unix(7): SIOCOUTQ counts what the peer has not read)."""
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
        await anyio.sleep(0)
