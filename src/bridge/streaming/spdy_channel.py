"""One SPDY stream as a Channel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bridge.streaming.inbox import Inbox
from bridge.streaming.spdy_frames import Reset

if TYPE_CHECKING:
    from bridge.streaming.spdy_session import SpdySession

_PIECE = 64 << 10


class SpdyChannel:
    """One stream (bridge.streaming.channels.Channel). ``headers`` are those of its opening."""

    def __init__(self, session: SpdySession, number: int, headers: Mapping[str, str]) -> None:
        self._session = session
        self.number = number
        self.headers = headers
        self._came = Inbox()
        self._ended = False
        self._news = asyncio.Event()
        self._closed = False

    def feed(self, data: bytes, end: bool) -> None:
        """Data from the peer; ``end``: no more will come (also: it gave the stream up)."""
        self._came.add(data)
        self._ended |= end
        self.wake()
        self._settle()

    @property
    def unread(self) -> int:
        """Bytes that came and were not read."""
        return self._came.size

    def drop_unread(self) -> None:
        """Forget what came: nobody will read it."""
        self._came = Inbox()

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._news.set()

    def _settle(self) -> None:
        if self._closed and self._ended and not self._came.size:
            self._session.forget(self)

    @property
    def has_news(self) -> bool:
        """See Channel."""
        return self._ended or self._came.size > 0

    async def read(self) -> bytes:
        """See Channel."""
        while not self._came.size:
            if self._ended:
                return b""
            self._session.check()
            self._news.clear()
            await self._news.wait()
        data = self._came.take()
        self._session.used(self, len(data))
        self._settle()
        return data

    async def write(self, data: bytes) -> None:
        """See Channel."""
        view = memoryview(data)
        machine = self._session.machine
        while len(view):
            self._session.check()
            if self._closed or not machine.is_open(self.number):
                return
            room = min(machine.room(self.number), _PIECE)
            if room == 0:
                self._news.clear()
                await self._news.wait()
                continue
            if self._session.congested:
                await self._session.room_to_send()
                continue
            machine.send(self.number, view[:room])
            view = view[room:]
            self._session.flush_soon()
        await self._session.room_to_send()

    async def close(self) -> None:
        """See Channel."""
        if not self._closed:
            self._closed = True
            self._session.machine.send(self.number, b"", end=True)
            self._session.flush_soon()
            self._settle()

    def reset(self, status: Reset = Reset.CANCEL) -> None:
        """Give it up in both directions."""
        self._closed = True
        self._session.forget(self)
        self._session.machine.reset(self.number, status)
        self._session.flush_soon()
        self.feed(b"", end=True)
