"""Clients that are killed while the server reads nothing of theirs: their end comes behind what they left unsent, and so never."""

from __future__ import annotations

import asyncio
import socket
import struct

import anyio
import pytest

from bridge.core.stream_requests import StreamRequest
from bridge.streaming import socket_wire, spdy_session, websocket_session
from bridge.streaming.channels import RemoteCommand
from bridge.streaming.server import StreamServer, StreamSettings
from bridge.streaming.spdy import SpdyMachine
from tests.unit.streaming.stream_client import (
    CAT,
    FORWARD,
    Client,
    EchoSessions,
    SpdyClient,
    asking,
    place,
    request,
    spdy_command,
    spdy_headers,
    until,
    websocket,
    websocket_headers,
)


class DeafSessions(EchoSessions):
    """Reads nothing, as a command that takes no input."""

    async def _command(self, request: StreamRequest, command: RemoteCommand) -> None:
        self.running += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.running -= 1


class Flood:
    """A client that sends without end, unmasked by any care; ``push`` until the server takes no more."""

    def __init__(self, url: str, headers: list[str]) -> None:
        host, port, _ = place(url)
        self._sock = socket.create_connection((host, port))
        self._sock.sendall(request(url, *headers))
        self._sock.setblocking(False)

    async def push(self, data: bytes) -> None:
        stuck = 0
        while stuck < 10:
            try:
                data = data[self._sock.send(data) :] or bytes(65536)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                await anyio.sleep(0.05)

    def die(self) -> None:
        """As the kernel closes what a killed process had open."""
        self._sock.close()


def over_spdy() -> bytes:
    machine = SpdyMachine(client=True)
    streams = [machine.open([("streamType", kind)]) for kind in ("error", "stdin", "stdout", "stderr")]
    for _ in range(512):
        machine.send(streams[1], bytes(65536))
    return machine.to_send()


def over_websocket() -> bytes:
    """One binary message of 1 GiB on channel 0, masked with zeros."""
    return b"\x82\xff" + (1 << 30).to_bytes(8, "big") + bytes(4) + bytes(1 << 20)


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_one_that_is_killed_is_noticed(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((spdy_session, "PING_SECONDS"), (websocket_session, "PING_SECONDS"), (socket_wire, "_LOOK_SECONDS")):
        monkeypatch.setattr(module, name, 0.2)
    sessions = DeafSessions()
    async with StreamServer.open(StreamSettings(), sessions) as server:
        spdy = transport == "spdy"
        headers = spdy_headers("v4.channel.k8s.io") if spdy else websocket_headers("v5.channel.k8s.io")
        client = Flood(server.url(CAT), list(headers))
        await client.push(over_spdy() if spdy else over_websocket())
        await until(lambda: sessions.running == 1)
        await anyio.sleep(1)
        assert sessions.running == 1, "one that lives may be slow"
        client.die()
        await until(lambda: sessions.running == 0)


async def test_many_who_leave_in_every_way_leave_no_task() -> None:
    """Ended, closed and reset ones, over both transports, and a forwarded connection of each kind of end."""
    before = asyncio.all_tasks()
    async with StreamServer.open(StreamSettings(), EchoSessions()) as server:
        idle = len(asyncio.all_tasks())
        for _ in range(20):
            async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, stream):
                spdy.machine.send(stream["stdin"], b"to the end", end=True)
                await spdy.flush()
                await spdy.take_until_end(stream["error"])
            async with websocket(server.url(CAT), "v5.channel.k8s.io") as client:
                await client.take_until(1)
                reset(client.client)
            async with asking(server.url(FORWARD), *spdy_headers("portforward.k8s.io")) as forwarding:
                spdy = SpdyClient(forwarding)
                for number in range(10):
                    for kind in ("error", "data"):
                        spdy.open(streamType=kind, port="80", requestID=str(number))
                await spdy.flush()
                await spdy.take()
        await until(lambda: (server.sessions, server.waiting) == (0, 0))
        await until(lambda: len(asyncio.all_tasks()) <= idle)
    assert asyncio.all_tasks() <= before


def reset(client: Client) -> None:
    """Hang up with a reset."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()
