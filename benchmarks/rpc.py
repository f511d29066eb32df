"""The stopwatch's side of the wire: gRPC calls that carry ready bytes, so that both servers are asked at equal, small cost.

Requests are encoded before the clock starts and responses decoded after it stops: what is timed is one HTTP/2 round trip
and the server's work. The same client, library and socket kind serve both servers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import anyio
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

RUNTIME = "/runtime.v1.RuntimeService/"
IMAGE = "/runtime.v1.ImageService/"


class Message(Protocol):
    """A generated CRI message."""

    def __bytes__(self) -> bytes: ...
    def parse(self, data: bytes) -> Self: ...


M = TypeVar("M", bound=Message)


class RawCodec(CodecBase):
    """Hands bytes through; the messages were encoded by the caller."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:  # noqa: ARG002 (grpclib's signature)
        """The bytes as they are."""
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:  # noqa: ARG002 (grpclib's signature)
        """The bytes as they are."""
        return data


class Rpc:
    """A connection to one CRI server."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def timed(self, method: str, request: Message, *, service: str = RUNTIME, timeout: float = 60.0) -> tuple[float, bytes]:
        """Call ``method``; the answer's bytes and how long it took, in milliseconds. Raises GRPCError."""
        body = bytes(request)
        call: UnaryUnaryMethod[bytes, bytes] = UnaryUnaryMethod(self._channel, service + method, bytes, bytes)
        begin = time.perf_counter()
        answer = await call(body, timeout=timeout)
        return (time.perf_counter() - begin) * 1000, answer

    async def call(self, method: str, request: Message, answer: type[M], *, service: str = RUNTIME, timeout: float = 60.0) -> M:
        """Call ``method`` off the clock and decode its answer."""
        _, data = await self.timed(method, request, service=service, timeout=timeout)
        return answer().parse(data)


@asynccontextmanager
async def connect(socket: Path, probe: Message, *, deadline: float = 30.0) -> AsyncIterator[Rpc]:
    """A connection to ``socket``, given once the server answers Version(``probe``). Raises TimeoutError."""
    with anyio.fail_after(deadline):
        while True:
            channel = Channel(path=str(socket), codec=RawCodec())
            try:
                await Rpc(channel).timed("Version", probe, timeout=5.0)
                break
            except (OSError, GRPCError, StreamTerminatedError):
                channel.close()
                await anyio.sleep(0.1)
    try:
        yield Rpc(channel)
    finally:
        channel.close()
