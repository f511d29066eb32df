"""What comes on one ttrpc stream, and the two ends of a stream that carries more than a request and its response."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, TypeVar

import anyio
from betterproto2 import Message

from bridge.errors import BridgeError, IllegalTransition, LimitExceeded
from bridge.shimv2.encoding import decode
from bridge.shimv2.frames import MAX_DATA, Flags, Frame, Kind, Oversized
from bridge.wire.codec import encode

M = TypeVar("M", bound=Message)

_WAITING_LIMIT: Final = 1024
"""Frames of one stream that may wait for their reader: ttrpc has no flow control, and one stream must not hold up the others."""


class Inbox:
    """Frames of one stream, in order, until the stream fails or its connection is lost. One reader."""

    def __init__(self, name: str, gone: Callable[[], BridgeError]) -> None:
        self._name = name
        self._gone = gone
        self._frames: deque[Frame] = deque()
        self._failure: BridgeError | None = None
        self._news = anyio.Event()

    def put(self, frame: Frame | Oversized) -> None:
        """Take a frame. One that is too long, or that finds too many waiting, ends this stream and no other."""
        if isinstance(frame, Oversized):
            self.fail(LimitExceeded(f"{self._name}: a message of {frame.length} bytes is over ttrpc's limit of {MAX_DATA}"))
        elif len(self._frames) >= _WAITING_LIMIT:
            self.fail(LimitExceeded(f"{self._name}: more than {_WAITING_LIMIT} messages were not read"))
        elif self._failure is None:
            self._frames.append(frame)
            self._news.set()

    def lose(self) -> None:
        """The connection is gone: what has come may still be read."""
        self.fail(self._gone())

    def fail(self, failure: BridgeError) -> None:
        """The reader gets ``failure`` once it has read what came before."""
        self._failure = self._failure or failure
        self._news.set()

    async def next(self) -> Frame:
        """The next frame. Raises what the stream failed with."""
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._news = anyio.Event()
            await self._news.wait()
        return self._frames.popleft()

    async def response(self) -> bytes:
        """Data of the response that ends the stream; anything before it is not for a unary call and is dropped."""
        while True:
            frame = await self.next()
            if frame.kind == Kind.RESPONSE:
                return frame.data


class _Sending:
    """The sending half of a stream."""

    def __init__(self, send: Callable[[Flags, bytes], None], *, open: bool) -> None:
        self._send = send
        self._open = open

    def send(self, message: Message) -> None:
        """Send ``message``. Raises LimitExceeded over 4 MiB, IllegalTransition after ``close_sending``, ShimGone."""
        if not self._open:
            raise IllegalTransition("nothing can be sent on this stream any more")
        self._send(Flags.NONE, encode(message))

    def close_sending(self) -> None:
        """Tell the other side that nothing more comes. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._send(Flags.REMOTE_CLOSED | Flags.NO_DATA, b"")


class ClientStream(_Sending, Generic[M]):
    """The caller's end. Iterate it for the messages; it ends with the stream, or raises the error of its status.

    A stream that is answered by one response and no data gives that response as its only message.
    """

    def __init__(
        self, send: Callable[[Flags, bytes], None], inbox: Inbox, answer: Callable[[bytes], M], message_type: type[M], *, open: bool
    ) -> None:
        super().__init__(send, open=open)
        self._inbox = inbox
        self._answer = answer
        self._type = message_type
        self.ended = False
        """Whether the other side said its last."""
        self._seen = False

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        while not self.ended:
            frame = await self._inbox.next()
            if frame.kind == Kind.RESPONSE:
                self.ended = True
                answer = self._answer(frame.data)
                if self._seen:
                    break  # it only closes what data carried
                return answer
            if frame.kind != Kind.DATA:
                continue
            self.ended = bool(frame.flags & Flags.REMOTE_CLOSED)
            if not frame.flags & Flags.NO_DATA:
                self._seen = True
                return decode(self._type, frame.data)
        raise StopAsyncIteration


class ServerStream(_Sending, Generic[M]):
    """The serving end: the messages that the caller sends, the request's own payload first where there is one."""

    def __init__(self, send: Callable[[Flags, bytes], None], inbox: Inbox, message_type: type[M], first: bytes, *, open: bool) -> None:
        super().__init__(send, open=True)
        self._inbox = inbox
        self._type = message_type
        self._first: bytes | None = first if first or not open else None
        self._remote_open = open

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        if self._first is not None:
            first, self._first = self._first, None
            return decode(self._type, first)
        while self._remote_open:
            frame = await self._inbox.next()
            self._remote_open = not frame.flags & Flags.REMOTE_CLOSED
            if not frame.flags & Flags.NO_DATA:
                return decode(self._type, frame.data)
        raise StopAsyncIteration
