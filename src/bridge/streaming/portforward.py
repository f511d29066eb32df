"""Serves a port-forward: a socket in the pod for each connection that the client opens, all at the same time.

Each half is closed by itself: the client's end of data is the pod's, and the other way round. The error channel tells why there is
no connection, and says nothing otherwise; a client may take a word on it for the end of its whole session (kubectl does), so a
connection that merely breaks is just closed.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial

import anyio
import anyio.abc

from bridge import log
from bridge.core.stream_requests import PortForwardRequest
from bridge.core.streams import StreamService
from bridge.errors import BridgeError
from bridge.streaming import copying
from bridge.streaming.channels import ConnectionLost, ForwardedConnection, PortForwardStreams

_logger = log.get("streaming.portforward")


class PortForwards:
    """The port-forwards of one server. ``idle_timeout`` in seconds: a session that copies nothing for that long is ended."""

    def __init__(self, streams: StreamService, *, idle_timeout: float) -> None:
        self._streams = streams
        self._idle_timeout = idle_timeout

    async def port_forward(self, request: PortForwardRequest, connections: PortForwardStreams) -> None:
        """See bridge.streaming.sessions.Sessions."""
        await _Forwards(self._streams, request.sandbox_id, copying.Idle(self._idle_timeout)).serve(connections)


class _Forwards:
    """One session. Its failures are kept: the group would wrap them."""

    def __init__(self, streams: StreamService, sandbox_id: str, idle: copying.Idle) -> None:
        self._streams = streams
        self._sandbox_id = sandbox_id
        self._idle = idle
        self._failure: Exception | None = None
        self._group: anyio.abc.TaskGroup

    async def serve(self, connections: PortForwardStreams) -> None:
        """Until the client has left, or nothing was copied for too long."""
        with self._idle.scope:
            async with anyio.create_task_group() as self._group:
                self._group.start_soon(self._guard, partial(self._accept, connections), name="port-forward")
        if self._idle.scope.cancelled_caught:
            _logger.info("a port-forward to pod %s was idle for %g s and is closed", self._sandbox_id[:13], self._idle.seconds)
        if self._failure is not None and not isinstance(self._failure, ConnectionLost):
            raise self._failure

    async def _accept(self, connections: PortForwardStreams) -> None:
        async for connection in connections:
            self._idle.touch()
            self._group.start_soon(self._guard, partial(self._forward, connection), name=f"port-forward {connection.port}")

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 - raised by serve
            self._failure = self._failure or exc
            self._group.cancel_scope.cancel()

    async def _forward(self, connection: ForwardedConnection) -> None:
        data, error = connection.data, connection.error
        try:
            dialled = await self._streams.port_forward(self._sandbox_id, connection.port)
        except ConnectionLost:
            raise
        except BridgeError as exc:
            await error.write(str(exc).encode())
            await error.close()
            await data.close()
            await copying.discard(data)
            return
        with closing(dialled) as sock:
            async with anyio.create_task_group() as halves:
                halves.start_soon(self._guard, partial(self._up, connection, sock), name="to the pod")
                halves.start_soon(self._guard, partial(self._down, connection, sock), name="from the pod")

    async def _up(self, connection: ForwardedConnection, sock: socket.socket) -> None:
        if await copying.to_descriptor(connection.data, sock.fileno(), self._idle):
            with suppress(OSError):  # it is closed altogether meanwhile
                sock.shutdown(socket.SHUT_WR)
        else:
            await copying.discard(connection.data)

    async def _down(self, connection: ForwardedConnection, sock: socket.socket) -> None:
        await copying.from_descriptor(sock.fileno(), connection.data, self._idle)
        await connection.data.close()
        await connection.error.close()  # now, not after the client's half: older kubectl closes that once it knows of no error
