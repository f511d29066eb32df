"""Clients of the stream server as kubelets and crictl are: HTTP upgrade, then SPDY or WebSocket. And sessions that echo."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage

from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio, StreamRequest
from bridge.streaming.channels import ForwardedConnection, PortForwardStreams, RemoteCommand
from bridge.streaming.server import StreamServer, StreamSettings
from bridge.streaming.spdy import SpdyMachine
from bridge.streaming.spdy_events import DataReceived
from bridge.streaming.spdy_events import Event as SpdyEvent

CAT = ExecRequest("c1", ("cat",), Stdio(stdin=True, stdout=True, stderr=True))
FORWARD = PortForwardRequest("p1", (8080, 53))
KEY = base64.b64encode(bytes(16)).decode()
SUCCESS = b'{"metadata":{},"status":"Success"}'


@dataclass
class EchoSessions:
    """Writes back what it reads, until the client closes its half. ``running`` counts; ``requests`` are those that came."""

    running: int = 0
    requests: list[StreamRequest] = field(default_factory=list)
    commands: list[RemoteCommand] = field(default_factory=list)

    async def exec(self, request: ExecRequest, command: RemoteCommand) -> None:
        await self._command(request, command)

    async def attach(self, request: AttachRequest, command: RemoteCommand) -> None:
        await self._command(request, command)

    async def _command(self, request: StreamRequest, command: RemoteCommand) -> None:
        self.running += 1
        self.requests.append(request)
        self.commands.append(command)
        try:
            if command.stdin is not None and command.stdout is not None:
                while data := await command.stdin.read():
                    await command.stdout.write(data)
            await command.error.write(SUCCESS)
        finally:
            self.running -= 1

    async def port_forward(self, request: PortForwardRequest, connections: PortForwardStreams) -> None:
        self.running += 1
        self.requests.append(request)
        try:
            async with anyio.create_task_group() as group:
                async for connection in connections:
                    group.start_soon(self._echo, connection)
        finally:
            self.running -= 1

    async def _echo(self, connection: ForwardedConnection) -> None:
        await connection.data.write(f"{connection.port}:".encode())
        while data := await connection.data.read():
            await connection.data.write(data)
        await connection.data.close()
        await connection.error.close()


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[StreamServer, EchoSessions]]:
    sessions = EchoSessions()
    async with StreamServer.open(StreamSettings(**settings), sessions) as server:  # type: ignore[arg-type]
        yield server, sessions


async def until(true: Callable[[], bool]) -> None:
    """Wait for it, 30 s at most."""
    with anyio.fail_after(30):
        while not true():
            await anyio.sleep(0.005)


@dataclass
class Client:
    """A connection, with what the server has answered to its request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: bytes = b""

    @property
    def status(self) -> int:
        return int(self.answer.split(b" ", 2)[1])

    async def read(self) -> bytes:
        return await self.reader.read(65536)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def is_hung_up_on(self) -> bool:
        """Wait for the end of the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        return True


def place(url: str) -> tuple[str, int, str]:
    """Host, port and path of a URL."""
    host, _, rest = url.partition("://")[2].partition("/")
    name, _, port = host.rpartition(":")
    return name.strip("[]"), int(port), f"/{rest}"


@asynccontextmanager
async def connected(url: str, context: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    host, port, _ = place(url)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield Client(reader, writer)
    finally:
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()  # what the server does not take would keep us here
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def request(url: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {place(url)[2]} HTTP/1.1", "Host: node", *headers, "", ""]).encode()


def spdy_headers(*versions: str) -> Sequence[str]:
    return ["Connection: Upgrade", "Upgrade: SPDY/3.1", *(f"X-Stream-Protocol-Version: {version}" for version in versions)]


def websocket_headers(*protocols: str) -> Sequence[str]:
    asked = [f"Sec-WebSocket-Protocol: {', '.join(protocols)}"] if protocols else []
    return ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", *asked]


@asynccontextmanager
async def asking(
    url: str, *headers: str, method: str = "GET", early: bytes = b"", context: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    """A client that has sent its request and has the head of the answer; a refusal's body is in ``answer``, too."""
    async with connected(url, context) as client:
        await client.send(request(url, *headers, method=method) + early)
        client.answer = await client.reader.readuntil(b"\r\n\r\n")
        if client.status != 101:
            client.answer += await client.reader.read()
        yield client


class SpdyClient:
    """Drives a client's machine by hand."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.machine = SpdyMachine(client=True)
        self.events: list[SpdyEvent] = []

    def open(self, **headers: str) -> int:
        return self.machine.open(list(headers.items()))

    async def flush(self) -> None:
        await self.client.send(self.machine.to_send())

    def data(self, stream: int) -> bytes:
        """All that has come on it."""
        return b"".join(event.data for event in self.events if isinstance(event, DataReceived) and event.stream == stream)

    def ended(self, stream: int) -> bool:
        return any(isinstance(event, DataReceived) and event.stream == stream and event.end for event in self.events)

    async def take(self) -> bool:
        """What comes next; False at the end."""
        data = await self.client.read()
        if not data:
            return False
        self.events += self.machine.receive(data)
        await self.flush()
        return True

    async def take_until_end(self, *streams: int) -> None:
        while not all(self.ended(stream) for stream in streams):
            assert await self.take(), "the server hung up"


@asynccontextmanager
async def spdy_command(url: str, *streams: str, version: str = "v4.channel.k8s.io") -> AsyncIterator[tuple[SpdyClient, dict[str, int]]]:
    """An upgraded client with these streams open."""
    async with asking(url, *spdy_headers(version), method="POST") as client:
        assert client.status == 101, client.answer
        spdy = SpdyClient(client)
        numbers = {name: spdy.open(streamType=name) for name in streams}
        await spdy.flush()
        yield spdy, numbers


class WebSocketClient:
    """Drives a client's end of a WebSocket by hand."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.machine = Connection(ConnectionType.CLIENT)
        self.messages: list[bytes | str] = []
        self._parts: list[bytes | str] = []
        self.close_code: int | None = None
        self.others: list[Event] = []

    async def send(self, message: bytes | str | Event) -> None:
        event: Event
        if isinstance(message, bytes):
            event = BytesMessage(data=message)
        elif isinstance(message, str):
            event = TextMessage(data=message)
        else:
            event = message
        await self.client.send(self.machine.send(event))

    async def take(self) -> bool:
        """What comes next; False at the end."""
        data = await self.client.read()
        if not data or self.close_code is not None:
            return False
        self.machine.receive_data(data)
        for event in self.machine.events():
            if isinstance(event, BytesMessage | TextMessage):
                self._parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
                if event.message_finished:
                    self.messages.append(self._joined())
            elif isinstance(event, CloseConnection):
                self.close_code = int(event.code)
            else:
                self.others.append(event)
        return True

    def _joined(self) -> bytes | str:
        parts, self._parts = self._parts, []
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
        return b"".join(part for part in parts if isinstance(part, bytes))

    async def take_all(self) -> None:
        while await self.take():
            pass

    async def take_until(self, count: int) -> None:
        """Until so many messages have come."""
        while len(self.messages) < count:
            assert await self.take(), "the server hung up"


@asynccontextmanager
async def websocket(url: str, *protocols: str) -> AsyncIterator[WebSocketClient]:
    async with asking(url, *websocket_headers(*protocols)) as client:
        assert client.status == 101, client.answer
        yield WebSocketClient(client)
