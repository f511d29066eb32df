"""The serving side of ttrpc: what takes the shims' events, and what tests' own shims are made of.

Each request is a task of its connection and ends with it. A handler's expected error is answered with the code of its class
(``statuses``); any other is logged with its traceback, answered, and hurts no other call.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from betterproto2 import Message

from bridge import log
from bridge._proto.ttrpc import Request, Response, Status
from bridge.aio import Supervisor
from bridge.errors import BridgeError, HostError, InvalidRequest, LimitExceeded, ShimGone, TimedOut, Unsupported
from bridge.shimv2.connection import Connection
from bridge.shimv2.encoding import decode
from bridge.shimv2.frames import MAX_DATA, Flags, Frame, Kind, Oversized
from bridge.shimv2.statuses import code_of
from bridge.shimv2.streams import Inbox, ServerStream
from bridge.wire.codec import encode

_RUNNING_LIMIT: Final = 1024
"""Calls of one connection that may run at once; the next is refused."""
_BACKLOG: Final = 128
_ACCEPT_PAUSE: Final = 0.1

_logger = log.get("shimv2.server")


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request, of ``request_type``, and one response."""

    request_type: type[Message]
    run: Callable[[Any], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method on a stream: ``run`` reads and sends, and returns the one response, or None when it sent messages instead."""

    request_type: type[Message]
    run: Callable[[ServerStream[Any]], Awaitable[Message | None]]


Services = Mapping[str, Mapping[str, Unary | Streaming]]
"""Methods by full service name and method name."""


@asynccontextmanager
async def serve(path: Path, services: Services) -> AsyncIterator[None]:
    """Serve ``services`` on a unix socket at ``path``, which only this user may open, while the block runs.

    What was at ``path`` before is replaced, and it is removed at the end. Raises HostError when it can't be bound.
    """
    with _listening(path) as listener:
        async with serve_listener(listener, services):
            yield


@asynccontextmanager
async def serve_listener(listener: socket.socket, services: Services) -> AsyncIterator[None]:
    """The same on a socket that listens already, as a shim gets it from its starter; it stays the caller's."""
    listener.setblocking(False)
    accepted: set[socket.socket] = set()

    async def serve_one(sock: socket.socket) -> None:
        await serve_connection(sock, services)
        accepted.discard(sock)

    def take(sock: socket.socket) -> None:
        accepted.add(sock)
        tasks.spawn("serve a ttrpc connection", functools.partial(serve_one, sock))

    try:
        async with Supervisor("ttrpc server") as tasks:
            with _accepting(listener, take):
                yield
    finally:
        for sock in accepted:  # of tasks that were cancelled before they began
            sock.close()


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
        path.unlink(missing_ok=True)
        try:
            listener.bind(str(path))
            path.chmod(0o600)  # nobody could connect before: it doesn't listen yet
            listener.listen(_BACKLOG)
        except OSError as exc:
            raise HostError(f"can't serve ttrpc at {path}: {exc.strerror or exc}", errno=exc.errno) from exc
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _accepting(listener: socket.socket, take: Callable[[socket.socket], None]) -> Iterator[None]:
    """Hand each connection to ``take``, in the loop's callback: a task that is cancelled before it ran would lose its socket."""
    loop = asyncio.get_running_loop()
    pause: asyncio.TimerHandle | None = None

    def accept() -> None:
        nonlocal pause
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as exc:  # no descriptors left: those who wait are served when there are some again
            _logger.warning("can't accept a ttrpc connection: %s", exc)
            loop.remove_reader(listener.fileno())
            pause = loop.call_later(_ACCEPT_PAUSE, loop.add_reader, listener.fileno(), accept)
        else:
            take(sock)

    loop.add_reader(listener.fileno(), accept)
    try:
        yield
    finally:
        loop.remove_reader(listener.fileno())
        if pause is not None:
            pause.cancel()


async def serve_connection(sock: socket.socket, services: Services) -> None:
    """Serve one connected socket, which this owns, until the caller closes it. Cancelling closes it too."""
    with sock:
        async with Supervisor("ttrpc connection") as tasks:
            session = _Session(sock, services, tasks)
            try:
                await session.lost.wait()
            finally:
                session.connection.close()


class _Session:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket, services: Services, tasks: Supervisor) -> None:
        self.lost = anyio.Event()
        self._services = services
        self._tasks = tasks
        self._last = 0
        self._running: dict[int, Inbox] = {}
        self.connection = Connection(sock, self._on_frame, self._on_lost)

    def _on_lost(self, why: BaseException | None) -> None:
        if why is not None:
            _logger.debug("a ttrpc connection was lost: %s", why)
        self.lost.set()

    def _on_frame(self, frame: Frame | Oversized) -> None:
        try:
            if isinstance(frame, Oversized):
                raise LimitExceeded(f"a message of {frame.length} bytes is over the limit of {MAX_DATA}")
            if frame.stream % 2 == 0:
                raise InvalidRequest("the caller's streams have odd numbers")
            if frame.kind == Kind.DATA:
                self._data(frame)
            elif frame.kind == Kind.REQUEST:
                self._request(frame)
        except BridgeError as exc:
            self._respond(frame.stream, exc, None)

    def _data(self, frame: Frame) -> None:
        inbox = self._running.get(frame.stream)
        if inbox is None:
            raise InvalidRequest("the stream is not active")
        inbox.put(frame)

    def _request(self, frame: Frame) -> None:
        if frame.stream <= self._last:
            raise InvalidRequest("a stream's number must be higher than those before it")
        self._last = frame.stream
        request = decode(Request, frame.data)
        methods = self._services.get(request.service)
        if methods is None:
            raise Unsupported(f"service {request.service}")
        method = methods.get(request.method)
        if method is None:
            raise Unsupported(f"method {request.method}")
        if len(self._running) >= _RUNNING_LIMIT:
            raise LimitExceeded(f"more than {_RUNNING_LIMIT} calls at once")
        name = f"{request.service}/{request.method}"
        inbox = self._running[frame.stream] = Inbox(name, lambda: ShimGone(f"{name}: the caller is gone"))
        self._tasks.spawn(name, lambda: self._serve(name, method, request, frame, inbox))

    async def _serve(self, name: str, method: Unary | Streaming, request: Request, frame: Frame, inbox: Inbox) -> None:
        timeout = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        error: Exception | None = None
        answer: Message | None = None
        try:
            with anyio.move_on_after(timeout) as scope:
                answer = await self._run(method, request, frame, inbox)
            if scope.cancelled_caught:
                raise TimedOut(f"{name} did not end within {timeout:g} s")
        except BridgeError as exc:
            error = exc
        except Exception as exc:
            _logger.exception("%s failed", name)
            error = exc
        finally:
            self._running.pop(frame.stream, None)
        self._respond(frame.stream, error, answer)

    async def _run(self, method: Unary | Streaming, request: Request, frame: Frame, inbox: Inbox) -> Message | None:
        if isinstance(method, Unary):
            return await method.run(decode(method.request_type, request.payload))

        def send(flags: Flags, data: bytes) -> None:
            self.connection.send(frame.stream, Kind.DATA, flags, data)

        more = bool(frame.flags & Flags.REMOTE_OPEN)
        return await method.run(ServerStream(send, inbox, method.request_type, request.payload, open=more))

    def _respond(self, stream: int, error: Exception | None, answer: Message | None) -> None:
        """End ``stream``: with the error's status, with the answer, or, after data alone, with nothing."""
        if error is None and answer is None:
            self.connection.send(stream, Kind.DATA, Flags.REMOTE_CLOSED | Flags.NO_DATA, b"")
            return
        try:
            response = Response(payload=encode(answer)) if answer is not None else _refusal(error)
            self.connection.send(stream, Kind.RESPONSE, Flags.NONE, encode(response))
        except LimitExceeded as exc:
            self.connection.send(stream, Kind.RESPONSE, Flags.NONE, encode(_refusal(exc)))


def _refusal(error: Exception | None) -> Response:
    return Response(status=Status(code=code_of(error), message=str(error)))
