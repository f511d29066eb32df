"""The wire on real sockets: closing one whose client has reset it, and pieces that were put back."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from bridge.streaming.channels import ConnectionLost
from bridge.streaming.socket_wire import PIECE, SocketWire
from tests.unit.streaming.stream_client import until


async def made() -> tuple[SocketWire, socket.socket, list[str]]:
    """A wire, the client's socket, and a word for each call of ``on_lost``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    lost: list[str] = []
    wire = SocketWire(lambda: lost.append("lost"))
    accepted.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: wire, accepted)
    return wire, client, lost


async def test_closing_what_the_client_has_reset_leaves_no_transport() -> None:
    wire, client, lost = await made()
    with client:
        client.send(b"unread")
        assert await wire.receive() == b"unread"
        client.send(b"more")
        await until(lambda: bool(wire._came))  # from here on the loop has no turn in which it could see the reset
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await wire.close()
    await until(lambda: lost == ["lost"])
    with pytest.raises(ConnectionLost):
        await wire.send(b"x")
    await wire.close()


async def test_what_was_put_back_comes_first_and_the_end_last() -> None:
    wire, client, lost = await made()
    with client:
        client.send(b"first")
        assert await wire.receive() == b"first"
        client.send(b"second")
        await until(lambda: bool(wire._came))
        wire.put_back(b"early")
        wire.put_back(b"")
        client.shutdown(socket.SHUT_WR)
        assert [await wire.receive() for _ in range(4)] == [b"early", b"second", b"", b""]
        await wire.close()
        assert client.recv(10) == b""
    assert lost == ["lost"]


async def test_everything_that_was_sent_arrives_before_the_end() -> None:
    wire, client, _ = await made()
    with client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()

        async def send() -> None:
            for _ in range(50):
                await wire.send(bytes(100_000))
            await wire.close()

        sending = asyncio.ensure_future(send())
        client.send(b"never read")
        received = 0
        while data := await loop.sock_recv(client, 65536):
            received += len(data)
        assert received == 5_000_000
        client.close()
        await sending


async def test_reading_stops_while_a_large_piece_waits() -> None:
    wire, client, _ = await made()
    with client:
        client.setblocking(False)
        total, got = 16 << 20, 0
        pushing = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, bytes(total)))
        await until(lambda: wire._unread >= PIECE)
        for _ in range(100):
            await asyncio.sleep(0)
        assert wire._unread < 2 * PIECE
        while got < total:
            got += len(await wire.receive())
        await pushing
    wire.abort()
    await until(wire._over.is_set)
