"""GET /metrics over HTTP/1.1, on a unix socket or a TCP address: one request a connection.

Bounded: the time for one connection, the bytes of a request's head, the connections at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import anyio
import anyio.abc
import h11
from anyio.to_thread import run_sync

from bridge import log
from bridge.streaming.tls import Certificate

SECONDS = 10.0
"""For one connection, from its handshake to the last byte of the answer."""
HEAD_BYTES = 8192
CONNECTIONS = 16
"""At once; more are hung up on."""
_logger = log.get("metrics")

Render = Callable[[str], Awaitable[tuple[bytes, str]]]
"""The page and its content type, for an Accept header."""


class Endpoint:
    """Serves ``render``'s page on ``listener``, which it does not own, while ``serve`` runs."""

    def __init__(self, listener: socket.socket, render: Render, certificate: Certificate | None = None) -> None:
        self._listener = listener
        self._render = render
        self._certificate = certificate
        self._open = 0

    async def serve(self) -> None:
        """Take connections, for ever. Nothing that a client does ends it."""
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as group:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError as exc:
                    _logger.warning("a client can't be accepted: %s", exc)
                    await anyio.sleep(0.1)
                    continue
                if self._open >= CONNECTIONS:
                    connection.close()
                    continue
                self._open += 1
                group.start_soon(self._attend, connection, name="metrics connection")

    async def _attend(self, connection: socket.socket) -> None:
        try:
            with ExitStack() as unowned, anyio.move_on_after(SECONDS):
                unowned.callback(connection.close)
                await self._connect(connection, unowned)
        except OSError as exc:  # a TLS handshake that fails, too
            _logger.debug("a client's connection failed: %s", exc)
        except Exception:
            _logger.exception("metrics could not be told")
        finally:
            self._open -= 1

    async def _connect(self, connection: socket.socket, unowned: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        context = None if self._certificate is None else await run_sync(self._certificate.context)
        reader = asyncio.StreamReader(limit=HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        unowned.pop_all()
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._converse(reader, writer)
            writer.close()
            await writer.wait_closed()
        finally:
            transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            while (event := wire.next_event()) is h11.NEED_DATA:
                wire.receive_data(await reader.read(HEAD_BYTES))
        except h11.RemoteProtocolError as exc:
            await _answer(wire, writer, exc.error_status_hint, b"the request can't be read\n")
            return
        if not isinstance(event, h11.Request):
            return  # the client left
        if event.target.partition(b"?")[0] != b"/metrics":
            await _answer(wire, writer, 404, b"there is only /metrics\n")
        elif event.method != b"GET":
            await _answer(wire, writer, 405, b"only GET is understood\n", allow="GET")
        else:
            accept = next((value.decode("latin-1") for name, value in event.headers if name == b"accept"), "")
            page, kind = await self._render(accept)
            await _answer(wire, writer, 200, page, **{"content-type": kind})


async def _answer(wire: h11.Connection, writer: asyncio.StreamWriter, status: int, body: bytes, **headers: str) -> None:
    known = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close", **headers}
    head = wire.send(h11.Response(status_code=status, headers=list(known.items()))) or b""
    writer.write(head + body)
    await writer.drain()
