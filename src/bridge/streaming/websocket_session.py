"""A WebSocket with channels: what a remote command, or a port-forward of protocol v4, is served through.

The protocol knows no flow control for a channel: while one holds CHANNEL_HIGH that nobody has read, the connection is not read.
Of the halves of a channel only the client's stdin can be closed by itself (v5); all else ends with the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio

from bridge import log
from bridge.core.stream_requests import Stdio
from bridge.streaming.channel_messages import ChannelCodec, MessageError
from bridge.streaming.channels import ConnectionLost, ForwardedConnection, PortForwardStreams, RemoteCommand
from bridge.streaming.inbox import Inbox
from bridge.streaming.transport import Wire
from bridge.streaming.websocket import INTERNAL_ERROR, NORMAL, WebSocket

CHANNEL_HIGH = 256 << 10
PING_SECONDS = 5.0
"""Between pings while the connection is not read."""
_PIECE = 64 << 10
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)
COMMAND_CHANNELS = 5
_STRUCTURED = ("v4.channel.k8s.io", "v5.channel.k8s.io", "v4.base64.channel.k8s.io")
_logger = log.get("streaming.websocket")


class WebSocketChannel:
    """One channel (bridge.streaming.channels.Channel)."""

    def __init__(self, session: WebSocketSession, number: int) -> None:
        self._session = session
        self._number = number
        self._closed = False
        self.inbox = Inbox()
        self.ended = False
        self.news = anyio.Event()

    @property
    def has_news(self) -> bool:
        """See Channel."""
        return self.ended or self.inbox.size > 0

    async def read(self) -> bytes:
        """See Channel."""
        while not self.inbox.size:
            if self.ended:
                return b""
            self._session.check()
            self.news = anyio.Event()
            await self.news.wait()
        data = self.inbox.take()
        self._session.room.set()
        return data

    async def write(self, data: bytes) -> None:
        """See Channel. Nothing at all is a message, too: some clients take the first one for the sign that all is well."""
        for start in range(0, max(1, len(data)), _PIECE):
            if self._closed:
                return
            await self._session.send(self._number, data[start : start + _PIECE])

    async def close(self) -> None:
        """See Channel. There is no way to tell the client."""
        self._closed = True


class WebSocketSession:
    """The channels of one connection. Made by ``websocket_session``."""

    def __init__(self, socket: WebSocket, codec: ChannelCodec, readable: Iterable[int], count: int) -> None:
        self._socket = socket
        self._codec = codec
        self._lost = False
        self._readable = frozenset(readable)
        self.channels = [WebSocketChannel(self, number) for number in range(count)]
        self.room = anyio.Event()

    def check(self) -> None:
        """Raise ConnectionLost once the connection is gone."""
        if self._lost:
            raise ConnectionLost("the client's connection is gone")

    async def send(self, number: int, data: bytes) -> None:
        """Send a message. Raises ConnectionLost."""
        await self._socket.send(self._codec.encode(number, data))

    async def receive_for_ever(self) -> None:
        """Take what the client sends until it ends or breaks the rules."""
        try:
            while (piece := await self._socket.receive()) is not None:
                arrived = self._codec.decode(piece.data, last=piece.last)
                if arrived is None or arrived.channel not in self._readable:
                    continue  # as peers do: clients send sizes of terminals that nobody asked for
                channel = self.channels[arrived.channel]
                if not channel.ended:
                    channel.inbox.add(arrived.data)
                    channel.ended = arrived.end
                channel.news.set()
                while channel.inbox.size >= CHANNEL_HIGH:
                    await self._wait_for_room()
        except MessageError as exc:
            _logger.info("a client broke the channel protocol: %s", exc)
            await self._socket.close(exc.code, str(exc))
        self._lost = True
        for channel in self.channels:
            channel.news.set()

    async def _wait_for_room(self) -> None:
        """Wait until something was read, pinging: the end of a client that left much unsent comes behind that; a ping meets it at once."""
        self.room = anyio.Event()
        with anyio.move_on_after(PING_SECONDS):
            await self.room.wait()
            return
        await self._socket.ping()


@asynccontextmanager
async def websocket_session(wire: Wire, protocol: str, readable: Iterable[int], count: int) -> AsyncIterator[WebSocketSession]:
    """A session while the block runs. The block is cancelled when the connection is lost; its own errors pass through."""
    socket = WebSocket(wire)
    codec = ChannelCodec(encoded="base64" in protocol, close_signal=protocol.startswith("v5."))
    session = WebSocketSession(socket, codec, readable, count)
    failure: BaseException | None = None
    async with anyio.create_task_group() as group:

        async def until_lost() -> None:
            await session.receive_for_ever()
            group.cancel_scope.cancel()

        group.start_soon(until_lost, name="websocket receive")
        try:
            yield session
        except ConnectionLost:
            pass
        except Exception as exc:  # noqa: BLE001 - the caller's own, raised again below: the group would wrap it
            failure = exc
        finally:
            with anyio.CancelScope(shield=True):
                await socket.close(NORMAL if failure is None else INTERNAL_ERROR)
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure


def readable(stdio: Stdio) -> set[int]:
    """The channels of a remote command on which the client may send."""
    return {_RESIZE} | ({_STDIN} if stdio.stdin else set())


async def command_over(session: WebSocketSession, protocol: str, stdio: Stdio) -> RemoteCommand:
    """The channels of a remote command, as far as it was asked for with them. Raises ConnectionLost."""
    channels = session.channels
    stderr = stdio.stderr and not stdio.tty
    first = _STDOUT if stdio.stdout else _STDERR if stderr else _ERROR
    await channels[first].write(b"")
    return RemoteCommand(
        error=channels[_ERROR],
        structured=protocol in _STRUCTURED,
        stdin=channels[_STDIN] if stdio.stdin else None,
        stdout=channels[_STDOUT] if stdio.stdout else None,
        stderr=channels[_STDERR] if stderr else None,
        resize=channels[_RESIZE] if stdio.tty else None,
    )


class _Ports:
    """The connections of a port-forward: one for each port, there from the beginning (PortForwardStreams)."""

    def __init__(self, connections: list[ForwardedConnection]) -> None:
        self._connections = connections

    async def __aiter__(self) -> AsyncIterator[ForwardedConnection]:
        for connection in self._connections:
            yield connection


async def ports_over(session: WebSocketSession, ports: tuple[int, ...]) -> PortForwardStreams:
    """Two channels for each port, data and error; on both come the port's two bytes first, the lower one ahead. Raises ConnectionLost."""
    found = []
    for port, data, error in zip(ports, session.channels[::2], session.channels[1::2], strict=True):
        await data.write(port.to_bytes(2, "little"))
        await error.write(port.to_bytes(2, "little"))
        found.append(ForwardedConnection(port, data, error))
    return _Ports(found)
