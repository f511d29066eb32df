"""A streaming client in memory: channels that it fills and reads, with as much room as it says."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import anyio

from bridge.streaming.channels import ConnectionLost, ForwardedConnection, RemoteCommand


class MemoryChannel:
    """Our side has read, write and close (bridge.streaming.channels.Channel); the client's has the rest."""

    def __init__(self, room: float = float("inf")) -> None:
        self.room = room
        """Bytes that the client takes before it reads."""
        self._got = bytearray()
        self.closed = False
        self.unread: deque[bytes] = deque()
        self.ended = False
        self.lost = False
        self._news = anyio.Event()

    @property
    def got(self) -> bytes:
        """What the client has got."""
        return bytes(self._got)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    @property
    def has_news(self) -> bool:
        return self.lost or self.ended or bool(self.unread)

    async def read(self) -> bytes:
        while not self.unread:
            if self.lost:
                raise ConnectionLost("lost")
            if self.ended:
                return b""
            await self._news.wait()
        data = self.unread.popleft()
        self._tell()
        return data

    async def write(self, data: bytes) -> None:
        while len(self._got) + len(data) > self.room and not self.lost:
            await self._news.wait()
        if self.lost:
            raise ConnectionLost("lost")
        if not self.closed:
            self._got += data
            self._tell()

    async def close(self) -> None:
        self.closed = True
        self._tell()

    async def send(self, data: bytes) -> None:
        """The client's data; waits while 256 KiB are unread, as a transport does."""
        while sum(map(len, self.unread)) >= 256 << 10:
            await self._news.wait()
        self.unread.append(data)
        self._tell()

    def end(self) -> None:
        """The client closes its half."""
        self.ended = True
        self._tell()

    def lose(self) -> None:
        """The connection is gone."""
        self.lost = True
        self._tell()

    def take(self, count: int) -> None:
        """The client reads: room for ``count`` bytes more."""
        self.room += count
        self._tell()

    async def until(self, text: bytes) -> None:
        """Wait until the client has got ``text``."""
        with anyio.fail_after(10):
            while text not in self._got:
                await self._news.wait()

    async def until_closed(self) -> bytes:
        """Everything that the client got, once our half is closed."""
        with anyio.fail_after(10):
            while not self.closed:
                await self._news.wait()
        return self.got


class Client:
    """The channels of one remote command; each by its name, None when it was not asked for."""

    def __init__(self, *names: str, structured: bool = True) -> None:
        self.error = MemoryChannel()
        self.channels = {name: MemoryChannel() for name in names}
        self.command = RemoteCommand(self.error, structured, **self.channels)

    def __getattr__(self, name: str) -> MemoryChannel:
        try:
            return self.channels[name]
        except KeyError as exc:
            raise AttributeError(name) from exc

    def lose(self) -> None:
        """The connection is gone."""
        for channel in (self.error, *self.channels.values()):
            channel.lose()

    @property
    def last_word(self) -> dict[str, Any]:
        """The status that it was told."""
        assert self.error.closed
        status: dict[str, Any] = json.loads(self.error.got)
        return status

    @property
    def exit_code(self) -> int:
        """As a client of Kubernetes finds it."""
        status = self.last_word
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode", status
        (cause,) = status["details"]["causes"]
        assert cause["reason"] == "ExitCode"
        return int(cause["message"])


class Forwards:
    """The forwarded connections of one client, in the order in which it opens them."""

    def __init__(self) -> None:
        self._opened: deque[ForwardedConnection] = deque()
        self._lost = False
        self._news = anyio.Event()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def open(self, port: int) -> tuple[MemoryChannel, MemoryChannel]:
        """Data and error channel of a new connection."""
        data, error = MemoryChannel(), MemoryChannel()
        self._opened.append(ForwardedConnection(port, data, error))
        self._tell()
        return data, error

    def leave(self) -> None:
        """The client is gone."""
        self._lost = True
        self._tell()

    async def __aiter__(self) -> AsyncIterator[ForwardedConnection]:
        while not self._lost:
            while self._opened:
                yield self._opened.popleft()
            await self._news.wait()
        raise ConnectionLost("lost")
