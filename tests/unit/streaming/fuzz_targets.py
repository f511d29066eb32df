"""What a fuzzer feeds with bytes: every parser of what a client sends. Only the parsers' own errors may come out, and nothing may grow.

Run by ``test_fuzz``: mutations of our own, and atheris where it is installed (``fuzz_with_atheris``).
"""

from __future__ import annotations

import asyncio
import atexit
import functools
from collections.abc import Callable, Iterator, Mapping

from bridge.core.stream_requests import ExecRequest, PortForwardRequest, Stdio, StreamRequest
from bridge.streaming.channel_messages import ChannelCodec, MessageError
from bridge.streaming.refusals import Refused
from bridge.streaming.spdy import Limits, SpdyMachine
from bridge.streaming.spdy_events import DataReceived, StreamOpened
from bridge.streaming.spdy_frames import SpdyError
from bridge.streaming.upgrade import MAX_HEAD, Reception
from bridge.streaming.websocket import WebSocket

_LIMITS = Limits(streams=8, control=4096, headers=4096)
_ANSWER = 32
"""Bytes of answer that a byte of input may bring forth, at most: a reset for an empty frame, a reply for a stream."""


def http(data: bytes) -> None:
    """The request."""

    def redeem(kind: str, token: str) -> StreamRequest | None:
        kinds: dict[str, StreamRequest] = {
            "exec": ExecRequest("c", ("sh",), Stdio(stdin=True)),
            "portforward": PortForwardRequest("p", (1,)),
        }
        return kinds.get(kind) if token else None

    reception = Reception(redeem)
    for piece in _pieces(data):
        try:
            upgrade = reception.receive(piece)
        except Refused as exc:
            refused = exc
            break
        if upgrade is not None:
            assert upgrade.answer.startswith(b"HTTP/1.1 101 ")
            assert len(upgrade.early) <= len(data)
            return
    else:
        assert len(data) <= MAX_HEAD
        return
    assert 400 <= refused.status < 600
    assert reception.refusal(refused).startswith(b"HTTP/1.1 %d " % refused.status)


def spdy(data: bytes) -> None:
    """Frames."""
    machine, given = SpdyMachine(limits=_LIMITS), 0
    for piece in _pieces(data):
        try:
            events = machine.receive(piece)
        except SpdyError:
            break
        for event in events:
            if isinstance(event, StreamOpened):
                machine.reply(event.stream)
                machine.send(event.stream, b"x" * min(16, machine.room(event.stream)), end=event.end)
            elif isinstance(event, DataReceived):
                given += len(event.data)
                machine.consumed(event.stream, len(event.data))
        assert len(machine._streams) <= _LIMITS.streams
    assert given <= len(data)
    assert machine.pending <= _ANSWER * len(data) + 64
    assert len(machine._parser._rest) <= _LIMITS.control + 8


def websocket(data: bytes) -> None:
    """Frames, messages, and channels in them."""
    _loop().run_until_complete(_websocket(data))


async def _websocket(data: bytes) -> None:
    wire = _Script(data)
    socket, codec = WebSocket(wire), ChannelCodec(encoded=data[:1] > b"\x80", close_signal=True)
    given = 0
    try:
        while (piece := await socket.receive()) is not None:
            arrived = codec.decode(piece.data, last=piece.last)
            given += 0 if arrived is None else len(arrived.data)
            assert len(codec._rest) <= 4
    except MessageError as exc:
        await socket.close(exc.code, str(exc))
    assert given <= len(data)
    assert wire.sent <= 2 * len(data) + 256


class _Script:
    """A wire that gives bytes and counts what it is given; nothing on it ever waits."""

    def __init__(self, data: bytes) -> None:
        self._pieces = _pieces(data)
        self.sent = 0

    async def receive(self) -> bytes:
        return next(self._pieces, b"")

    async def send(self, data: bytes) -> None:
        self.sent += len(data)

    async def close(self) -> None:
        return


def _pieces(data: bytes) -> Iterator[bytes]:
    """``data`` cut as its length says."""
    step = (7, 64, 1000, 1 << 20)[len(data) % 4]
    return (data[start : start + step] for start in range(0, len(data), step))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


TARGETS: Mapping[str, Callable[[bytes], None]] = {"http": http, "spdy": spdy, "websocket": websocket}
