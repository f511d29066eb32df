"""Client and server over a real socket pair: calls at once, time-outs, cancellation, losses, limits, and every status."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from betterproto2 import Message

from bridge import errors
from bridge._proto.containerd.task.v2 import (
    ConnectRequest,
    ConnectResponse,
    KillRequest,
    StateRequest,
    StateResponse,
    WaitRequest,
    WaitResponse,
)
from bridge._proto.containerd.types import Empty
from bridge._proto.ttrpc import Request, Response, Status
from bridge.aio import Supervisor
from bridge.errors import CorruptData, LimitExceeded, RuntimeFailed, ShimGone, TimedOut, Unsupported
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import decode
from bridge.shimv2.frames import MAX_DATA, Decoder, Flags, Frame, Kind, encode
from bridge.shimv2.server import Services, Unary, serve_connection
from bridge.shimv2.statuses import Code, code_of, error_of

TASK = "containerd.task.v2.Task"
SECONDS = 20.0


class FakeShim:
    """Methods of the task service, enough to see each way a call can go."""

    def __init__(self) -> None:
        self.waiting = anyio.Event()
        self.exit = anyio.Event()
        self.cancelled = anyio.Event()
        self.failure: Exception = errors.NotFound("no such process")

    def services(self) -> Services:
        return {
            TASK: {
                "Connect": Unary(ConnectRequest, self.connect),
                "Wait": Unary(WaitRequest, self.wait),
                "State": Unary(StateRequest, self.state),
                "Kill": Unary(KillRequest, self.kill),
            }
        }

    async def connect(self, request: ConnectRequest) -> Message:
        return ConnectResponse(shim_pid=1, version=request.id)

    async def wait(self, request: WaitRequest) -> Message:
        self.waiting.set()
        try:
            await self.exit.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
            raise
        return WaitResponse(exit_status=137)

    async def state(self, request: StateRequest) -> Message:
        return StateResponse(bundle="b" * int(request.id))

    async def kill(self, request: KillRequest) -> Message:
        raise self.failure


@asynccontextmanager
async def connected(services: Services) -> AsyncIterator[tuple[TtrpcClient, Callable[[], None]]]:
    """A client of ``services``, and what closes the server's side."""
    ours, theirs = socket.socketpair()
    async with Supervisor() as tasks:
        scope = anyio.CancelScope()

        async def serve() -> None:
            with scope:
                await serve_connection(theirs, services)

        tasks.spawn("serve", serve)
        client = TtrpcClient(ours, handler="vm", metadata={"k": "v"})
        try:
            yield client, scope.cancel
        finally:
            client.close()


class Peer:
    """The server's side by hand, frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()

    async def frame(self) -> Frame:
        with anyio.fail_after(SECONDS):
            while True:
                await anyio.wait_readable(self.sock)
                for found in self._decoder.feed(self.sock.recv(65536)):
                    assert isinstance(found, Frame)
                    return found

    def send(self, *frame: int | bytes) -> None:
        self.sock.sendall(encode(*frame))  # type: ignore[arg-type]


@asynccontextmanager
async def by_hand() -> AsyncIterator[tuple[TtrpcClient, Peer]]:
    ours, theirs = socket.socketpair()
    client = TtrpcClient(ours, handler="vm", metadata={"k": "v"})
    try:
        yield client, Peer(theirs)
    finally:
        client.close()
        theirs.close()


async def test_many_calls_share_the_connection_and_a_waiting_one_holds_up_none() -> None:
    shim, seen = FakeShim(), []

    async def ask(client: TtrpcClient, number: int) -> None:
        answer = await client.call(TASK, "Connect", ConnectRequest(id=str(number)), ConnectResponse, timeout=SECONDS)
        seen.append((number, answer.version))

    async with connected(shim.services()) as (client, _), anyio.create_task_group() as group:
        answers: list[WaitResponse] = []

        async def wait() -> None:
            answers.append(await client.call(TASK, "Wait", WaitRequest(), WaitResponse, timeout=None))

        group.start_soon(wait)
        await shim.waiting.wait()
        async with anyio.create_task_group() as askers:
            for number in range(200):
                askers.start_soon(ask, client, number)
        assert sorted(seen) == [(number, str(number)) for number in range(200)]
        assert answers == []
        shim.exit.set()
    assert answers == [WaitResponse(exit_status=137)]


async def test_a_request_is_what_the_specification_says() -> None:
    async with by_hand() as (client, peer), anyio.create_task_group() as group:
        group.start_soon(partial(client.call, TASK, "Connect", ConnectRequest(id="c"), ConnectResponse, timeout=1.5))
        frame = await peer.frame()
        request = decode(Request, frame.data)
        assert (frame.stream, frame.kind, frame.flags) == (1, Kind.REQUEST, Flags.NONE)
        assert (request.service, request.method, request.payload) == (TASK, "Connect", bytes(ConnectRequest(id="c")))
        assert request.timeout_nano == 1_500_000_000
        assert [(entry.key, entry.value) for entry in request.metadata] == [("k", "v")]
        peer.send(1, Kind.RESPONSE, 0, bytes(Response(payload=b"")))
    async with by_hand() as (client, peer), anyio.create_task_group() as group:
        group.start_soon(partial(client.call, TASK, "Wait", WaitRequest(), WaitResponse, timeout=None))
        assert decode(Request, (await peer.frame()).data).timeout_nano == 0
        group.cancel_scope.cancel()


async def test_answers_come_to_their_callers_in_any_order_and_late_ones_to_nobody() -> None:
    async with by_hand() as (client, peer):
        got: dict[str, str] = {}

        async def ask(name: str) -> None:
            got[name] = (await client.call(TASK, "Connect", ConnectRequest(id=name), ConnectResponse, timeout=SECONDS)).version

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "a")
            assert (await peer.frame()).stream == 1
            group.start_soon(ask, "b")
            assert (await peer.frame()).stream == 3
            with anyio.CancelScope() as left:
                left.cancel()
                await client.call(TASK, "Connect", ConnectRequest(id="left"), ConnectResponse, timeout=SECONDS)
            for stream, name in ((5, "late"), (3, "b"), (77, "unasked"), (1, "a")):
                peer.send(stream, Kind.RESPONSE, 0, bytes(Response(payload=bytes(ConnectResponse(version=name)))))
            peer.send(1, 99, 0, b"a kind of a later version")
        assert got == {"a": "a", "b": "b"}


async def test_a_time_out_is_the_callers_and_the_shims() -> None:
    shim = FakeShim()
    async with connected(shim.services()) as (client, _):
        with pytest.raises(TimedOut, match=r"handler 'vm': containerd\.task\.v2\.Task/Wait"):
            await client.call(TASK, "Wait", WaitRequest(), WaitResponse, timeout=0.05)
        with anyio.fail_after(SECONDS):
            await shim.cancelled.wait()  # it was told how long
        assert (await client.call(TASK, "Connect", ConnectRequest(id="on"), ConnectResponse, timeout=SECONDS)).version == "on"


async def test_a_lost_shim_is_told_to_everyone_who_waits_and_to_who_comes_later() -> None:
    shim, told = FakeShim(), []
    async with connected(shim.services()) as (client, hang_up), anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(ShimGone, match="Task/Wait: the connection to the shim is closed"):
                await client.call(TASK, "Wait", WaitRequest(), WaitResponse, timeout=None)
            told.append(1)

        for _ in range(3):
            group.start_soon(wait)
        await shim.waiting.wait()
        hang_up()
        with anyio.fail_after(SECONDS):
            await client.closed.wait()
    assert told == [1, 1, 1]
    with pytest.raises(ShimGone, match="Task/Connect"):
        await client.call(TASK, "Connect", ConnectRequest(), ConnectResponse, timeout=1)


async def test_a_cancelled_call_leaves_the_connection_as_it_was() -> None:
    shim = FakeShim()
    async with connected(shim.services()) as (client, _):
        async with anyio.create_task_group() as group:
            group.start_soon(partial(client.call, TASK, "Wait", WaitRequest(), WaitResponse, timeout=None))
            await shim.waiting.wait()
            group.cancel_scope.cancel()
        assert client._streams == {}
        assert (await client.call(TASK, "Connect", ConnectRequest(id="on"), ConnectResponse, timeout=SECONDS)).version == "on"


async def test_too_long_messages_are_refused_either_way_and_the_connection_stays() -> None:
    async with connected(FakeShim().services()) as (client, _):
        with pytest.raises(LimitExceeded, match="Task/State: a message of"):
            await client.call(TASK, "State", StateRequest(id="9" * (MAX_DATA + 1)), StateResponse, timeout=SECONDS)
        with pytest.raises(LimitExceeded, match=r"Task/State: .*over ttrpc's limit"):
            await client.call(TASK, "State", StateRequest(id=str(MAX_DATA + 1)), StateResponse, timeout=SECONDS)
        assert len((await client.call(TASK, "State", StateRequest(id="4000000"), StateResponse, timeout=SECONDS)).bundle) == 4_000_000


async def test_an_oversized_answer_ends_its_call_and_no_other() -> None:
    async with by_hand() as (client, peer), anyio.create_task_group() as group:

        async def refused() -> None:
            with pytest.raises(LimitExceeded, match="a message of 4194305 bytes"):
                await client.call(TASK, "State", StateRequest(), StateResponse, timeout=SECONDS)

        group.start_soon(refused)
        stream = (await peer.frame()).stream
        await anyio.to_thread.run_sync(_send_blocking, peer.sock, (MAX_DATA + 1).to_bytes(4, "big") + bytes([0, 0, 0, stream, 2, 0]))
        await anyio.to_thread.run_sync(_send_blocking, peer.sock, b"z" * (MAX_DATA + 1))
        group.start_soon(partial(client.call, TASK, "Connect", ConnectRequest(), ConnectResponse, timeout=SECONDS))
        peer.send((await peer.frame()).stream, Kind.RESPONSE, 0, b"")


def _send_blocking(sock: socket.socket, data: bytes) -> None:
    sock.setblocking(True)
    sock.sendall(data)
    sock.setblocking(False)


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request", encode(1, Kind.RESPONSE, 0, b"ab")[:-1]])
async def test_what_is_no_ttrpc_loses_the_connection(noise: bytes) -> None:
    async with by_hand() as (client, peer), anyio.create_task_group() as group:

        async def refused() -> None:
            with pytest.raises(ShimGone, match="was lost"):
                await client.call(TASK, "State", StateRequest(), StateResponse, timeout=SECONDS)

        group.start_soon(refused)
        await peer.frame()
        peer.sock.sendall(noise)
        peer.sock.close()


@pytest.mark.parametrize("answer", [b"\xff\xff", bytes(Response(payload=b"\x0a\x05ab")), bytes(Response(payload=b"\x0a\x01\xff"))])
async def test_an_answer_that_is_no_message_names_the_method(answer: bytes) -> None:
    async with by_hand() as (client, peer), anyio.create_task_group() as group:

        async def refused() -> None:
            with pytest.raises(CorruptData, match="Task/State: the answer is malformed"):
                await client.call(TASK, "State", StateRequest(), StateResponse, timeout=SECONDS)

        group.start_soon(refused)
        await peer.frame()
        peer.send(1, Kind.RESPONSE, 0, answer)


@pytest.mark.parametrize("code", list(Code)[1:])
async def test_each_status_is_the_error_that_says_what_to_do(code: Code) -> None:
    error = error_of(code, "the shim's words", handler="vm", method="s/M")
    assert "'vm'" in str(error)
    assert "s/M" in str(error)
    assert "the shim's words" in str(error)
    if code in (Code.UNKNOWN, Code.INTERNAL):
        assert isinstance(error, RuntimeFailed)
        assert code.name in str(error)
    else:
        assert not isinstance(error, RuntimeFailed)
        assert type(error_of(code_of(error), "", handler="", method="")) is type(error) or isinstance(error, CorruptData)


def test_a_status_of_a_later_version_is_a_failure_of_the_runtime() -> None:
    assert "code 99" in str(error_of(99, "", handler="vm", method="s/M"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (errors.NotFound("no such process"), errors.NotFound),
        (errors.IllegalTransition("not started"), errors.IllegalTransition),
        (errors.InUse("busy"), errors.IllegalTransition),
        (errors.ShimGone("within"), errors.Unavailable),
        (ValueError("a bug"), RuntimeFailed),
        (errors.HostError("EIO"), RuntimeFailed),
    ],
)
async def test_a_handlers_error_arrives_as_its_class(raised: Exception, expected: type[Exception]) -> None:
    shim = FakeShim()
    shim.failure = raised
    async with connected(shim.services()) as (client, _):
        with pytest.raises(expected, match=str(raised)) as caught:
            await client.call(TASK, "Kill", KillRequest(), Empty, timeout=SECONDS)
        assert type(caught.value) is expected


async def test_unknown_services_and_methods_are_unsupported() -> None:
    async with connected(FakeShim().services()) as (client, _):
        with pytest.raises(Unsupported, match="service other"):
            await client.call("other", "Kill", KillRequest(), Empty, timeout=SECONDS)
        with pytest.raises(Unsupported, match="method Fly"):
            await client.call(TASK, "Fly", KillRequest(), Empty, timeout=SECONDS)


async def test_the_server_refuses_a_broken_caller_stream_by_stream() -> None:
    ours, theirs = socket.socketpair()
    async with Supervisor() as tasks:
        tasks.spawn("serve", partial(serve_connection, theirs, FakeShim().services()))
        peer = Peer(ours)
        good = bytes(Request(service=TASK, method="Connect"))
        peer.send(5, Kind.REQUEST, 0, good)
        assert decode(Response, (await peer.frame()).data).status is None
        for stream, kind, words in (
            (5, Kind.REQUEST, "higher"),
            (3, Kind.REQUEST, "higher"),
            (8, Kind.REQUEST, "odd"),
            (5, Kind.DATA, "not active"),
        ):
            peer.send(stream, kind, 0, good)
            answer = await peer.frame()
            status = decode(Response, answer.data).status
            assert isinstance(status, Status)
            assert (answer.stream, status.code) == (stream, Code.INVALID_ARGUMENT)
            assert words in status.message
        peer.send(9, 200, 0, b"a kind of a later version")
        peer.send(11, Kind.REQUEST, 0, b"\xff")
        assert (await peer.frame()).stream == 11
        peer.send(13, Kind.REQUEST, 0, good)
        assert (await peer.frame()).stream == 13
        ours.close()
