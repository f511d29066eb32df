"""The calling side of ttrpc: TtrpcClient, one connection with any number of calls and streams at once."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio
from betterproto2 import Message

from bridge import log
from bridge._proto.ttrpc import KeyValue, Request, Response
from bridge.errors import BridgeError, CorruptData, LimitExceeded, ShimGone, TimedOut
from bridge.shimv2.addresses import dial
from bridge.shimv2.connection import Connection
from bridge.shimv2.encoding import decode
from bridge.shimv2.frames import Flags, Frame, Kind, Oversized
from bridge.shimv2.statuses import error_of
from bridge.shimv2.streams import ClientStream, Inbox
from bridge.wire.codec import encode

M = TypeVar("M", bound=Message)

NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"
"""Metadata by which shims know the namespace of a call; several refuse calls without it."""
_LAST_STREAM: Final = 0xFFFFFFFF

_logger = log.get("shimv2.client")


class TtrpcClient:
    """A connection to a shim. Calls raise the error class of the status that the shim answers, or ShimGone when it is lost.

    ttrpc can't cancel a call: the shim goes on with one that was cancelled or timed out here, unless it keeps the time-out that
    it was told, and its late answer is dropped.
    """

    def __init__(self, sock: socket.socket, *, handler: str, metadata: Mapping[str, str]) -> None:
        """Use ``connect``."""
        self._handler = handler
        self._metadata = [KeyValue(key=key, value=value) for key, value in metadata.items()]
        self._next = 1
        self._streams: dict[int, Inbox] = {}
        self._lost = ""
        self.closed = anyio.Event()
        """Set once the connection is gone: lost, or left."""
        self._connection = Connection(sock, self._on_frame, self._on_lost)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: str | Path, *, handler: str = "shim", namespace: str = "default", timeout: float = 5.0
    ) -> AsyncIterator[TtrpcClient]:
        """Connect to ``address`` (see ``addresses``); ``handler`` is for messages, ``namespace`` goes with every call.

        Raises ShimGone when nobody listens there or accepts within ``timeout`` seconds, Unsupported, InvalidRequest, HostError.
        """
        client = cls(await dial(address, timeout=timeout), handler=handler, metadata={NAMESPACE_KEY: namespace})
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Leave: whoever waits for an answer gets ShimGone. Closing twice does nothing."""
        self._connection.close()

    async def call(self, service: str, method: str, request: Message, response_type: type[M], *, timeout: float | None) -> M:
        """Call ``service``/``method`` and return its answer; ``timeout`` in seconds is told the shim too, None waits for ever.

        Raises TimedOut, ShimGone, LimitExceeded (a message over 4 MiB, either way), CorruptData, and what ``statuses`` maps.
        """
        name = f"{service}/{method}"
        with self._opened(name) as (stream, inbox):
            self._request(stream, service, method, encode(request), timeout, Flags.NONE)
            with anyio.move_on_after(timeout):
                return self._answer(name, await inbox.response(), response_type)
        raise TimedOut(f"handler {self._handler!r}: {name} had no answer within {timeout:g} s")

    @asynccontextmanager
    async def stream(
        self,
        service: str,
        method: str,
        request: Message | None,
        response_type: type[M],
        *,
        sends: bool,
    ) -> AsyncIterator[ClientStream[M]]:
        """Open a stream. With ``sends`` messages may follow ``request`` (which may be None then), else it is all there is.

        Leaving the block drops what still comes; an unfinished stream of a shim goes on until its connection ends.
        """
        name = f"{service}/{method}"
        with self._opened(name) as (number, inbox):
            flags = Flags.REMOTE_OPEN if sends else Flags.REMOTE_CLOSED
            self._request(number, service, method, b"" if request is None else encode(request), None, flags)

            def send(flags: Flags, data: bytes) -> None:
                if self.closed.is_set():
                    raise self._gone(name)
                self._connection.send(number, Kind.DATA, flags, data)

            stream = ClientStream(send, inbox, lambda response: self._answer(name, response, response_type), response_type, open=sends)
            try:
                yield stream
            finally:
                if not (self._connection.closed or stream.ended):
                    stream.close_sending()

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, Inbox]]:
        if self.closed.is_set():
            raise self._gone(name)
        if self._next > _LAST_STREAM:
            raise LimitExceeded(f"handler {self._handler!r}: the connection has no stream numbers left; connect again")
        number, self._next = self._next, self._next + 2
        inbox = self._streams[number] = Inbox(f"handler {self._handler!r}: {name}", lambda: self._gone(name))
        try:
            yield number, inbox
        finally:
            self._streams.pop(number, None)

    def _request(self, stream: int, service: str, method: str, payload: bytes, timeout: float | None, flags: Flags) -> None:
        nanoseconds = 0 if timeout is None else max(1, int(timeout * 1e9))  # 0 would be: for ever
        request = Request(service=service, method=method, payload=payload, timeout_nano=nanoseconds, metadata=self._metadata)
        try:
            self._connection.send(stream, Kind.REQUEST, flags, encode(request))
        except LimitExceeded as exc:
            raise LimitExceeded(f"handler {self._handler!r}: {service}/{method}: {exc.message}") from exc

    def _answer(self, name: str, data: bytes, response_type: type[M]) -> M:
        response = self._decoded(name, Response, data)
        if response.status is not None and response.status.code:
            raise error_of(response.status.code, response.status.message, handler=self._handler, method=name)
        return self._decoded(name, response_type, response.payload)

    def _decoded(self, name: str, cls: type[M], data: bytes) -> M:
        try:
            return decode(cls, data)
        except CorruptData as exc:
            raise CorruptData(f"handler {self._handler!r}: {name}: the answer is {exc.message}") from exc

    def _gone(self, name: str) -> BridgeError:
        return ShimGone(f"handler {self._handler!r}: {name}: {self._lost}")

    def _on_frame(self, frame: Frame | Oversized) -> None:
        inbox = self._streams.get(frame.stream)
        if inbox is None:
            _logger.debug("handler %r: dropped a frame of stream %d, which has been left", self._handler, frame.stream)
        else:
            inbox.put(frame)

    def _on_lost(self, why: BaseException | None) -> None:
        self._lost = f"the connection to the shim was lost: {why}" if why is not None else "the connection to the shim is closed"
        self.closed.set()
        for inbox in self._streams.values():
            inbox.lose()
