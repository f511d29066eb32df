"""One RPC on one HTTP/2 stream: read the request, run the method, send the answer, and always a status.

This is the interceptor of all RPCs: request id in the log context, duration at debug level, errors through the table.
It replaces ``grpclib.server``, which answers an unknown method without a content type (so that Go clients report
Unknown for Unimplemented), sends an answer as three writes, and leaves an abandoned response generator to the garbage
collector. The transport underneath, ``grpclib.protocol``, is used as it is. Source: grpc/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import anyio
import h2.exceptions
from betterproto2.grpclib import ServiceBase
from grpclib.const import Status
from grpclib.metadata import decode_timeout, encode_grpc_message
from grpclib.protocol import Stream
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from bridge import aio, log
from bridge.api.encoding import WireCodec
from bridge.api.errors import status_of
from bridge.errors import BridgeError, InvalidRequest, LimitExceeded, Unsupported

Headers = Sequence[tuple[str, str]]
Failure = tuple[Status, str]

_logger = log.get("api")
_codec = WireCodec()
_boot = secrets.token_hex(3)
_numbers = itertools.count(1)
_OPEN = [(":status", "200"), ("content-type", "application/grpc")]
_OK = [("grpc-status", "0")]
_CONNECTION_WINDOW = 65535  # bytes, before a peer gives more (RFC 9113 §6.9.2)
_LOUD = frozenset((Status.INTERNAL, Status.UNKNOWN, Status.UNAVAILABLE))


_streaming: contextvars.ContextVar[Call] = contextvars.ContextVar("the streaming RPC that runs in this task")


class Method(NamedTuple):
    """An RPC as it is called; a streaming one returns an async generator of replies."""

    handler: Callable[[Any], Any]
    request_type: type[Any]
    reply_type: type[Any]
    streaming: bool


class Observer(Protocol):
    """Told of each RPC, for metrics. Neither may wait or raise."""

    def handler_of(self, request: Any) -> str:
        """The runtime handler that ``request`` is about, "" when it is about none; asked before it is served."""

    def called(self, rpc: str, handler: str, code: str, seconds: float, *, streaming: bool) -> None:
        """It has ended: ``rpc`` is its name, "" for one that is unknown; ``code`` gRPC's, such as NOT_FOUND."""


class Span(Protocol):
    """One RPC that a tracer follows. Neither may wait or raise."""

    def tell(self, message: Any) -> None:
        """Its request, once that is read, and the answer of a unary one: who wants to knows by them what it is about."""

    def end(self, status: Status, message: str) -> None:
        """It has ended, in the task that began it."""


class Tracer(Protocol):
    """Follows each RPC, for tracing. May neither wait nor raise."""

    def begin_rpc(self, path: str, headers: Headers, request: str, *, known: bool) -> Span:
        """An RPC begins in this task, by the caller's ``headers``; ``request`` is its id in the log; ``known``: it is served."""


def methods_of(services: Iterable[ServiceBase]) -> dict[str, Method]:
    """The methods of ``services`` by path. Raises TypeError for one that takes a stream of requests: CRI has none.

    The generated mapping holds wrappers around grpclib's stream; behind ``__rpc_name`` is the method ``name`` itself.
    """
    methods = {}
    for service in services:
        for path, entry in service.__mapping__().items():  # type: ignore[attr-defined]
            if entry.cardinality.client_streaming:
                raise TypeError(f"{path} takes a stream of requests, which is not supported")
            handler = getattr(service, entry.func.__name__.removeprefix("__rpc_"))
            methods[path] = Method(handler, entry.request_type, entry.reply_type, entry.cardinality.server_streaming)
    return methods


def ender() -> Callable[[BridgeError], None]:
    """For a streaming RPC's method: how its call is ended with an error at once, also while it hangs at a reader that doesn't read."""
    return _streaming.get().cancel


class Call:
    """One RPC in flight. ``run`` is its task; ``cancel`` ends it early, with a status unless the peer is gone."""

    __slots__ = (
        "_gone",
        "_handler",
        "_headers",
        "_max_message",
        "_metadata",
        "_observer",
        "_opened",
        "_span",
        "_stream",
        "_why",
        "_wire",
        "path",
        "scope",
        "streaming",
    )

    def __init__(self, stream: Stream, wire: H2Connection, headers: Headers, max_message: int) -> None:
        self._stream = stream
        self._wire = wire
        self._metadata = headers
        self._headers = dict(headers)
        self._max_message = max_message
        self._opened = False
        self._gone = False
        self._why: BridgeError | None = None
        self._observer: Observer | None = None
        self._span: Span | None = None
        self._handler = ""
        self.path = self._headers.get(":path", "")
        self.scope = anyio.CancelScope()
        self.streaming = False

    def cancel(self, why: BridgeError | None) -> None:
        """Cancel the method; ``why`` becomes its status. None: the peer is gone and gets none."""
        self._why = why
        self._gone = why is None
        self.scope.cancel()

    async def run(self, methods: Mapping[str, Method], observer: Observer | None = None, tracer: Tracer | None = None) -> None:
        """Do the whole RPC. Raises nothing but the cancellation of the task itself."""
        began = time.monotonic()
        self._observer = observer
        request = f"{_boot}-{next(_numbers)}"
        failure: Failure | None = None
        if tracer is not None:
            self._span = tracer.begin_rpc(self.path, self._metadata, request, known=self.path in methods)
        with log.context(request=request, rpc=self.path.rpartition("/")[2]):
            with self.scope:
                try:
                    await self._perform(methods)
                except Exception as exc:  # noqa: BLE001 - every failure becomes a status, bugs with their traceback in the log
                    failure = self._explain(exc, request)
            if self.scope.cancelled_caught:
                failure = status_of(self._why) if self._why else (Status.DEADLINE_EXCEEDED, "the caller's deadline passed")
            if failure is not None:
                self._fail(*failure)
            if self._span is not None:
                self._span.end(*(failure or (Status.OK, "")))
            if observer is not None:
                rpc = self.path.rpartition("/")[2] if self.path in methods else ""
                code = failure[0].name if failure else "OK"
                observer.called(rpc, self._handler, code, time.monotonic() - began, streaming=self.streaming)
            if _logger.isEnabledFor(logging.DEBUG):
                _logger.debug("%s %s in %.2f ms", self.path, failure[0].name if failure else "OK", (time.monotonic() - began) * 1e3)

    def _explain(self, exc: Exception, request: str) -> Failure:
        if isinstance(exc, h2.exceptions.ProtocolError):
            self._gone = True  # the peer reset the stream while an answer was on its way
            return Status.CANCELLED, "the caller is gone"
        failure = status_of(exc)
        if failure is None:
            _logger.error("%s met a bug", self.path, exc_info=exc)
            return Status.INTERNAL, f"internal error in request {request}: {aio.describe(exc)}"
        if failure[0] in _LOUD:
            _logger.warning("%s: %s: %s", self.path, failure[0].name, failure[1])
        return failure

    async def _perform(self, methods: Mapping[str, Method]) -> None:
        if self._why is not None:
            raise self._why
        method = methods.get(self.path)
        if method is None:
            raise Unsupported(f"unknown method {self.path}")
        self.streaming = method.streaming
        timeout = self._headers.get("grpc-timeout")
        if timeout is not None:
            self.scope.deadline = anyio.current_time() + _seconds(timeout)
        request = await self._receive(method.request_type)
        if self._observer is not None:
            self._handler = self._observer.handler_of(request)
        if self._span is not None:
            self._span.tell(request)
        if not method.streaming:
            reply = await method.handler(request)
            if self._span is not None:
                self._span.tell(reply)
            await self._answer(_codec.encode(reply, method.reply_type))
            return
        _streaming.set(self)  # for this task alone
        async with contextlib.aclosing(method.handler(request)) as replies:
            async for reply in replies:
                await self._send(_codec.encode(reply, method.reply_type))
        await self._open()
        await self._stream.send_headers(_OK, end_stream=True)

    async def _receive(self, request_type: type[Any]) -> Any:
        try:
            prefix = await self._stream.recv_data(5)
            if not prefix:
                raise InvalidRequest("the call carries no request")
            compressed, size = struct.unpack(">?I", prefix)
            if compressed:
                raise Unsupported("compressed requests are not understood")
            if size > self._max_message:
                raise LimitExceeded(f"the request has {size} bytes; at most {self._max_message} are taken")
            return _codec.decode(await self._stream.recv_data(size), request_type)
        except (AssertionError, ValueError) as exc:  # grpclib asserts that the stream is not too short
            raise InvalidRequest(f"the request can't be read: {exc}") from exc

    def _framed(self, message: bytes) -> bytes:
        if len(message) > self._max_message:
            raise LimitExceeded(f"the answer has {len(message)} bytes; at most {self._max_message} may be sent")
        return struct.pack(">?I", False, len(message)) + message

    async def _answer(self, message: bytes) -> None:
        """Headers, message and trailers: in one write if the peer's window has room, as it nearly always has."""
        framed = self._framed(message)
        number, wire = self._stream.id, self._wire
        assert number is not None
        if self._stream.connection.write_ready.is_set() and wire.local_flow_control_window(number) >= len(framed):
            step = wire.max_outbound_frame_size
            wire.send_headers(number, _OPEN)
            self._opened = True
            for at in range(0, len(framed), step):
                wire.send_data(number, framed[at : at + step])
            wire.send_headers(number, _OK, end_stream=True)
            self._stream.connection.flush()
        else:
            await self._send_framed(framed)
            await self._stream.send_headers(_OK, end_stream=True)

    async def _send(self, message: bytes) -> None:
        framed = self._framed(message)
        await self._open()
        await self._room(len(framed))
        await self._stream.send_data(framed)

    async def _room(self, size: int) -> None:
        """Wait until the peer's window takes the whole message, where it ever does.

        A stream that is ended at a slow reader then ends between two messages: after half a one, a Go client reports that in place of
        the status. No more than half a window is waited for, as peers open it again when half of it was read, and not before.
        """
        stream, number = self._stream, self._stream.id
        assert number is not None
        enough = min(size, self._wire.remote_settings.initial_window_size // 2, _CONNECTION_WINDOW // 2)
        while self._wire.local_flow_control_window(number) < enough:
            stream.window_updated.clear()
            await stream.window_updated.wait()

    async def _send_framed(self, framed: bytes) -> None:
        await self._open()
        await self._stream.send_data(framed)

    async def _open(self) -> None:
        if not self._opened:
            await self._stream.send_headers(_OPEN)
            self._opened = True

    def _fail(self, status: Status, message: str) -> None:
        """Send the status, without waiting for anybody: the call may be cancelled already."""
        stream, number = self._stream, self._stream.id
        if self._gone or not stream.closable or number is None:
            return
        trailers = [("grpc-status", str(status.value)), ("grpc-message", encode_grpc_message(message))]
        self._wire.send_headers(number, trailers if self._opened else _OPEN + trailers, end_stream=True)
        if stream.closable:
            self._wire.reset_stream(number, ErrorCodes.NO_ERROR)  # the request has not ended; nobody will read the rest
        stream.connection.flush()


def _seconds(timeout: str) -> float:
    try:
        return decode_timeout(timeout)
    except ValueError as exc:
        raise InvalidRequest(str(exc), field="grpc-timeout") from exc
