"""The gRPC server on a unix socket: who listens, which calls are in flight, and how it ends.

An RPC's task belongs to the server's task group (design §8). Services are given as objects of generated bases; methods
that they don't override answer UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
from betterproto2.grpclib import ServiceBase

from bridge import log
from bridge.api import sockets
from bridge.api.calls import Call, Observer, Tracer, methods_of
from bridge.api.connections import ServerProtocol
from bridge.errors import Unavailable

MAX_MESSAGE = 16 << 20  # bytes of one message either way: what a kubelet and crictl accept

_logger = log.get("api")


class GrpcServer:
    """Serves ``services`` between ``async with`` and its end, on each socket it is told to ``listen`` on.

    ``max_message`` bounds requests and answers in bytes; a larger one is RESOURCE_EXHAUSTED.
    """

    def __init__(self, services: Iterable[ServiceBase], *, max_message: int = MAX_MESSAGE) -> None:
        self._methods = methods_of(services)
        self._max_message = max_message
        self._group = anyio.create_task_group()
        self._listeners: list[tuple[asyncio.Server, sockets.Bound]] = []
        self._connections: set[ServerProtocol] = set()
        self._calls: set[Call] = set()
        self._idle = anyio.Event()
        self._draining = False
        self.observer: Observer | None = None
        """Told of each RPC; None costs nothing."""
        self.tracer: Tracer | None = None
        """Follows each RPC, beside the observer; None costs nothing."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool | None:
        try:
            with anyio.CancelScope(shield=True):
                await self.close(grace=0)
        finally:
            self._group.cancel_scope.cancel()
            suppressed = await self._group.__aexit__(kind, exc, tb)
        return suppressed

    @property
    def in_flight(self) -> int:
        """Number of calls that run now."""
        return len(self._calls)

    async def listen(self, path: Path, *, mode: int = 0o600, group: str = "") -> None:
        """Bind the unix socket ``path`` (see ``sockets.bind`` for the errors) and serve it at once."""
        bound = sockets.bind(path, mode=mode, group=group)
        try:
            server = await asyncio.get_running_loop().create_unix_server(self._protocol, sock=bound.socket, backlog=sockets.BACKLOG)
        except BaseException:
            bound.close()
            raise
        self._listeners.append((server, bound))
        _logger.info("serving %d methods on %s", len(self._methods), path)

    async def close(self, *, grace: float) -> None:
        """Stop accepting, let calls finish for ``grace`` seconds, cancel the rest with UNAVAILABLE, hang up.

        Endless calls (server streams) are cancelled at once, and new ones on open connections are refused. Returns when
        no call is left; a cancelled call's undo steps have deadlines of their own. Calling it twice is harmless.
        """
        self._draining = True
        for server, bound in self._listeners:
            server.close()
            bound.close()
        self._listeners.clear()
        self._cancel(lambda call: call.streaming)
        with anyio.move_on_after(grace):
            await self._wait_idle()
        self._cancel(lambda _call: True)
        await self._wait_idle()
        for connection in tuple(self._connections):
            connection.close()

    def _cancel(self, which: Callable[[Call], bool]) -> None:
        for call in tuple(self._calls):
            if which(call):
                call.cancel(Unavailable("the server is shutting down"))

    async def _wait_idle(self) -> None:
        while self._calls:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _protocol(self) -> ServerProtocol:
        return ServerProtocol(self._start, self._connections, max_message=self._max_message)

    def _start(self, call: Call, release: Callable[[], None]) -> None:
        self._calls.add(call)
        if self._draining:
            call.cancel(Unavailable("the server is shutting down"))
        self._group.start_soon(self._run, call, release, name=call.path)

    async def _run(self, call: Call, release: Callable[[], None]) -> None:
        try:
            await call.run(self._methods, self.observer, self.tracer)
        except Exception:
            # Only a defect of calls.py itself can come here; it must not take the other calls along.
            _logger.exception("%s could not be answered", call.path)
        finally:
            self._calls.discard(call)
            release()
            if not self._calls:
                self._idle.set()
