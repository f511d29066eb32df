"""A WebSocket on a Wire: whole and partial messages in, messages out; pings answered, the closing handshake done.

Nothing of a message is held: it is handed on in the pieces in which it comes. Extensions (compression) are never agreed upon.
Source: RFC 6455, framing by wsproto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import anyio.lowlevel
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage

from bridge import log
from bridge.streaming.channels import ConnectionLost
from bridge.streaming.transport import Wire

NORMAL, UNSUPPORTED_DATA, INTERNAL_ERROR = 1000, 1003, 1011
FRAMES = 128
"""Frames that are taken before others have their turn: a piece may hold ten thousands."""
_GOODBYE_SECONDS = 5.0
_logger = log.get("streaming.websocket")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a message; ``last`` ends it."""

    data: bytes
    last: bool
    text: bool = False


class WebSocket:
    """The server's end. One task receives, any may send."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._machine = Connection(ConnectionType.SERVER)
        self._events: Iterator[Event] = iter(())
        self._taken = 0
        self._sending = 0
        self._owed: bytes | None = None

    async def receive(self) -> Piece | None:
        """The next piece of a message; None once the client has closed or broken the connection."""
        while self._machine.state is ConnectionState.OPEN:
            for event in self._events:
                self._taken += 1
                if self._taken % FRAMES == 0:
                    await anyio.lowlevel.checkpoint()
                match event:
                    case Message():
                        text = isinstance(event, TextMessage)
                        data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                        return Piece(data, event.message_finished, text)
                    case Ping():
                        await self._pong(bytes(event.payload))
                    case CloseConnection():
                        await self._closed_by_client(event)
                        return None
                    case _:
                        pass  # a pong
            data = await self._wire.receive()
            if not data:
                return None
            self._machine.receive_data(data)
            self._events = self._machine.events()
        return None

    async def send(self, message: bytes | str) -> None:
        """Send a message. Raises ConnectionLost."""
        if self._machine.state is not ConnectionState.OPEN:
            raise ConnectionLost("the client has closed the WebSocket")
        event: Event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
        await self._write(self._machine.send(event))

    async def ping(self) -> None:
        """Have the client's side show that it is there. Nothing while another send waits for it; never raises for a lost connection."""
        if self._sending or self._machine.state is not ConnectionState.OPEN:
            return
        try:
            await self._write(self._machine.send(Ping()))
        except ConnectionLost:
            return

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say that nothing follows. Idempotent; never raises for a lost connection."""
        if self._machine.state is not ConnectionState.OPEN:
            return
        data = self._machine.send(CloseConnection(code=code, reason=reason))
        try:
            with anyio.move_on_after(_GOODBYE_SECONDS):
                await self._wire.send(data)
        except ConnectionLost:
            return

    async def _write(self, data: bytes) -> None:
        self._sending += 1
        try:
            await self._wire.send(data)
        finally:
            self._sending -= 1
        if not self._sending and self._owed is not None and self._machine.state is ConnectionState.OPEN:
            owed, self._owed = self._owed, None
            await self._pong(owed)

    async def _pong(self, payload: bytes) -> None:
        """Answer a ping; while another send waits for the client, only the last one is (RFC 6455 section 5.5.3)."""
        if self._sending:
            self._owed = payload
            return
        try:
            await self._write(self._machine.send(Ping(payload=payload).response()))
        except ConnectionLost:
            return

    async def _closed_by_client(self, event: CloseConnection) -> None:
        if self._machine.state is ConnectionState.OPEN:  # no close frame, but one that can't be understood
            _logger.info("a client broke the WebSocket protocol: %s", event.reason)
            await self.close(event.code, event.reason or "")
            return
        try:
            with anyio.move_on_after(_GOODBYE_SECONDS):
                await self._wire.send(self._machine.send(event.response()))
        except ConnectionLost:
            return


class TunnelWire:
    """A Wire inside the binary messages of a WebSocket (subprotocol ``SPDY/3.1+portforward.k8s.io``)."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        """See Wire."""
        while (piece := await self._socket.receive()) is not None:
            if piece.text:
                await self._socket.close(UNSUPPORTED_DATA, "only binary messages carry SPDY")
                break
            if piece.data:
                return piece.data
        return b""

    async def send(self, data: bytes) -> None:
        """See Wire."""
        await self._socket.send(data)

    async def close(self) -> None:
        """See Wire."""
        await self._socket.close()
