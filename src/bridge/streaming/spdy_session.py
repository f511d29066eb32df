"""A SPDY connection with tasks: one receives, one sends, and channels between them and whoever serves the streams.

Nothing here grows with what a peer does or fails to do. What came and was not read is bounded by STREAM_HIGH a stream and
SESSION_HIGH in all: beyond either, the socket is not read (spdystream heeds nothing finer: a peer that keeps windows is held up in
that stream alone, long before). What is to be sent is bounded by
SEND_HIGH: beyond it, ``write`` waits. Receiving never waits for sending, so two sides that both write can't lock each other out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from bridge import log
from bridge.streaming.channels import ConnectionLost
from bridge.streaming.spdy import Limits, SpdyMachine
from bridge.streaming.spdy_channel import SpdyChannel
from bridge.streaming.spdy_events import DataReceived, Event, GoneAway, StreamOpened, StreamReset, WindowGrew
from bridge.streaming.spdy_frames import Reset, SpdyError
from bridge.streaming.transport import Wire

_logger = log.get("streaming.spdy")
STREAM_HIGH = 256 << 10
FORWARD_HIGH = 2 << 20
"""The same for a forwarded connection. It is large because one whose pod does not read must not hold up the session's others soon."""
SESSION_HIGH = 4 << 20
SEND_HIGH = 256 << 10
ANSWERS_HIGH = 1 << 20
"""Of answers to what a peer says (pings, refused streams) that it does not take: beyond, it is given up."""
OPENINGS = 4096
"""Streams that a peer may open at once; beyond, it is slowed down to as many a second."""
FRAMES = 256
"""Frames that are taken before others have their turn: a piece may hold ten thousands."""
PING_SECONDS = 5.0
"""Between pings while the socket is not read."""
_GOODBYE_SECONDS = 5.0


class SpdySession:
    """See the module docstring. Made by ``spdy_session``; ``accept`` gives the streams that the peer opens."""

    def __init__(self, wire: Wire, machine: SpdyMachine, stream_high: int) -> None:
        self.machine = machine
        self._stream_high = stream_high
        self._limit = machine.limits.streams
        self._openings, self._openings_at = 0.0, anyio.current_time()
        self._wire = wire
        self._channels: dict[int, SpdyChannel] = {}
        self._opened: deque[SpdyChannel] = deque()
        self._full: set[int] = set()
        self._unread = 0
        self._lost = False
        self._arrived, self._dirty, self._sent, self._room = asyncio.Event(), anyio.Event(), anyio.Event(), anyio.Event()

    def check(self) -> None:
        """Raise ConnectionLost once the connection is gone."""
        if self._lost:
            raise ConnectionLost("the client's connection is gone")

    @property
    def has_opened(self) -> bool:
        """Whether ``accept`` has a stream at once."""
        return bool(self._opened)

    async def opened(self) -> None:
        """Wait until ``accept`` has a stream at once. Raises ConnectionLost."""
        while not self._opened:
            self.check()
            self._arrived.clear()
            await self._arrived.wait()

    async def accept(self) -> SpdyChannel:
        """The next stream that the peer opens, answered already. Raises ConnectionLost."""
        await self.opened()
        return self._opened.popleft()

    def used(self, channel: SpdyChannel, amount: int) -> None:
        """``amount`` bytes that came on ``channel`` were read."""
        self._unread -= amount
        if channel.unread < self._stream_high:
            self._full.discard(channel.number)
        self.machine.consumed(channel.number, amount)
        if self.machine.pending:
            self.flush_soon()
        self._room.set()

    def forget(self, channel: SpdyChannel) -> None:
        """``channel`` is given up: what it holds counts no more."""
        if self._channels.pop(channel.number, None) is not None:
            self._unread -= channel.unread
            channel.drop_unread()
            self._full.discard(channel.number)
            self._room.set()

    @property
    def streams(self) -> int:
        """How many streams are open, or hold something unread."""
        return len(self._channels)

    def flush_soon(self) -> None:
        """Have what the machine wants to say sent."""
        self._dirty.set()

    @property
    def congested(self) -> bool:
        """Whether as much waits to be sent as may."""
        return self.machine.pending >= SEND_HIGH

    async def room_to_send(self) -> None:
        """Wait while too much waits to be sent. Raises ConnectionLost."""
        while self.congested:
            self.check()
            await self._sent.wait()

    async def drain(self) -> None:
        """Wait until everything is with the socket. Raises ConnectionLost."""
        self._dirty.set()
        while self.machine.pending:
            self.check()
            await self._sent.wait()

    async def send_for_ever(self) -> None:
        """Send what the machine wants to say, until the connection is lost."""
        while True:
            await self._dirty.wait()
            self._dirty = anyio.Event()
            while data := self.machine.to_send():
                try:
                    await self._wire.send(data)
                except ConnectionLost:
                    self.lose()
                    return
                self._sent.set()
                self._sent = anyio.Event()

    async def receive_for_ever(self) -> None:
        """Take what the peer sends, until it ends or breaks the rules."""
        while not self._lost:
            while self._unread >= SESSION_HIGH or self._full:
                await self._wait_for_room()
            data = await self._wire.receive()
            if not data:
                break
            try:
                await self._take_frames(data)
            except SpdyError as exc:
                _logger.info("a client broke the SPDY protocol: %s", exc)
                with anyio.move_on_after(_GOODBYE_SECONDS):
                    await self.drain()
                break
            if self.machine.pending > SEND_HIGH + ANSWERS_HIGH:
                _logger.info("a client takes none of the answers that it asks for, and is given up")
                break
        self.lose()

    async def _take_frames(self, data: bytes) -> None:
        """What ``data`` brings. Raises SpdyError."""
        opened = 0
        for number, events in enumerate(self.machine.frames(data), 1):
            for event in events:
                self._take(event)
                opened += isinstance(event, StreamOpened)
            if number % FRAMES == 0:
                self.flush_soon()
                await self._slow_down(opened)
                await anyio.lowlevel.checkpoint()
                opened = 0
        if self.machine.pending:
            self.flush_soon()
        await self._slow_down(opened)

    async def _wait_for_room(self) -> None:
        """Wait until something was read, pinging: the end of a peer that left much unsent comes behind that; a ping meets it at once."""
        self._room = anyio.Event()
        with anyio.move_on_after(PING_SECONDS):
            await self._room.wait()
            return
        self.machine.ping()
        self.flush_soon()

    async def _slow_down(self, opened: int) -> None:
        """Streams cost most of all that a peer can have for a few bytes, all the more when it resets them at once."""
        now = anyio.current_time()
        self._openings = max(0.0, self._openings - (now - self._openings_at) * OPENINGS) + opened
        self._openings_at = now
        if self._openings > OPENINGS:
            await anyio.sleep(self._openings / OPENINGS - 1)

    def _take(self, event: Event) -> None:
        match event:
            case StreamOpened() if len(self._channels) >= self._limit:  # also those that it has reset and nobody has looked at
                self.machine.reset(event.stream, Reset.REFUSED_STREAM)
            case StreamOpened():
                channel = SpdyChannel(self, event.stream, event.headers)
                channel.feed(b"", event.end)
                self._channels[event.stream] = channel
                self.machine.reply(event.stream)
                self._opened.append(channel)
                self._arrived.set()
            case DataReceived():
                if (known := self._channels.get(event.stream)) is not None:
                    self._unread += len(event.data)
                    known.feed(event.data, event.end)
                    if known.unread >= self._stream_high:
                        self._full.add(event.stream)
            case StreamReset():
                if (known := self._channels.get(event.stream)) is not None:
                    known.feed(b"", end=True)
            case WindowGrew():
                for known in self._channels.values():
                    known.wake()
            case GoneAway():
                pass  # it opens no more; what is open goes on

    def lose(self) -> None:
        """The connection is gone: wake everyone who waits for it."""
        self._lost = True
        for event in (self._arrived, self._sent, self._room):
            event.set()
        for channel in self._channels.values():
            channel.wake()


@asynccontextmanager
async def spdy_session(
    wire: Wire, limits: Limits | None = None, *, stream_high: int = STREAM_HIGH, client: bool = False
) -> AsyncIterator[SpdySession]:
    """A session on ``wire`` while the block runs. The block is cancelled when the connection is lost; its own errors pass through."""
    session = SpdySession(wire, SpdyMachine(client=client, limits=limits or Limits()), stream_high)
    failure: BaseException | None = None
    async with anyio.create_task_group() as group:

        async def until_lost(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            finally:
                session.lose()
                group.cancel_scope.cancel()

        group.start_soon(until_lost, session.send_for_ever, name="spdy send")
        group.start_soon(until_lost, session.receive_for_ever, name="spdy receive")
        try:
            yield session
        except ConnectionLost:
            pass
        except Exception as exc:  # noqa: BLE001 - the caller's own, raised again below: the group would wrap it
            failure = exc
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _GOODBYE_SECONDS):
                session.machine.go_away()
                await _say_goodbye(session)
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _say_goodbye(session: SpdySession) -> None:
    try:
        await session.drain()
    except ConnectionLost:
        return
