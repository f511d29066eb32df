"""Serves a port-forward: a socket in the pod for each connection that the client opens, all at the same time.

Each half is closed by itself: the client's end of data is the pod's, and the other way round. The error channel tells why there is
no connection, and says nothing otherwise; a client may take a word on it for the end of its whole session (kubectl does), so a
connection that merely breaks is just closed.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
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
        self._relays: set[_Relay] = set()
        self._group: anyio.abc.TaskGroup

    async def serve(self, connections: PortForwardStreams) -> None:
        """Until the client has left, or nothing was copied for too long."""
        try:
            with self._idle.scope:
                async with anyio.create_task_group() as self._group:
                    self._group.start_soon(self._guard, partial(self._accept, connections), name="port-forward")
        finally:
            for relay in self._relays:
                relay.socket.close()
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
        relay = _Relay(connection, dialled)
        self._relays.add(relay)
        await self._up(relay)
        if not relay.is_answering:  # a request that was there at once: one task does all
            await self._down(relay)
        elif relay.is_answered:
            self._end(relay)

    def _answer(self, relay: _Relay) -> None:
        """Let the pod's half go on by itself while the client's waits."""
        if not relay.is_answering:
            relay.is_answering = True
            self._group.start_soon(self._guard, partial(self._down, relay), name="from the pod")

    async def _up(self, relay: _Relay) -> None:
        data, answer = relay.connection.data, partial(self._answer, relay)
        if await copying.to_descriptor(data, relay.socket.fileno(), self._idle, answer):
            with suppress(OSError):  # it is closed altogether meanwhile
                relay.socket.shutdown(socket.SHUT_WR)
        else:
            answer()
            await copying.discard(data)
        relay.is_asked = True

    async def _down(self, relay: _Relay) -> None:
        data, error = relay.connection.data, relay.connection.error
        await copying.from_descriptor(relay.socket.fileno(), data, self._idle)
        await data.close()
        await error.close()  # now, not after the client's half: older kubectl closes that once it knows of no error
        relay.is_answered = True
        if relay.is_asked:
            self._end(relay)

    def _end(self, relay: _Relay) -> None:
        self._relays.discard(relay)
        relay.socket.close()


@dataclass(eq=False, slots=True)
class _Relay:
    """One connection with its socket in the pod, which is closed once both halves are over.

    ``is_asked``: all was copied to the pod; ``is_answering``: a task copies from it; ``is_answered``: all was copied.
    """

    connection: ForwardedConnection
    socket: socket.socket
    is_asked: bool = False
    is_answering: bool = False
    is_answered: bool = False
