"""A client of exec, attach and port-forward URLs: as small as one of SPDY and WebSocket can be, so that the server is what takes the time.

For benchmarks and for load tests of runtimes. It counts what comes and hands it on; it keeps nothing. Blocking, on one socket: meant for
a thread of its own; another thread may send.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from bridge.streaming.spdy_frames import FLAG_FIN, MAX_FRAME, HeaderCodec, Kind, control, data_head, words

PIECE = 32 << 10
"""What clients written in Go send in a frame: as much as io.Copy reads at once."""
STDIN, STDOUT, STDERR, ERROR = range(4)
_ROOM = 1 << 20
_PATIENCE = 60.0  # seconds; a server that says nothing for so long has failed
_NOBODY = -1
_CLOSE_SIGNAL = 255
V5 = "v5.channel.k8s.io"
_V4 = "v4.channel.k8s.io"


class Ended(ConnectionError):
    """The server hung up."""


class _Connection(ABC):
    """An upgraded connection. ``counts``: bytes by channel; ``ended``: channels that the server has closed; ``heard`` is given all data."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        place, _, path = url.partition("://")[2].partition("/")
        host, _, port = place.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_ROOM))
        self.counts: dict[int, int] = {}
        self.ended: set[int] = set()
        self.heard: Callable[[int, memoryview], None] | None = None
        self._rest = b""
        self._left = 0
        self._channel = _NOBODY
        self._end = False
        lines = [f"GET /{path} HTTP/1.1", f"Host: {place}", "Connection: Upgrade", *(f"{name}: {value}" for name, value in headers.items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = self._socket.recv(65536)
            answer += data
            if not data or not b"HTTP/1.1 101".startswith(answer[:12]):
                raise RuntimeError(f"no upgrade: {answer.decode(errors='replace')}")
        self._feed(memoryview(answer.partition(b"\r\n\r\n")[2]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def send_frames(self, frames: bytes) -> None:
        """What ``frame`` has made."""
        self._socket.sendall(frames)

    def until(self, true: Callable[[], bool]) -> None:
        """Take what comes until it is true. Raises Ended."""
        while not true():
            size = self._socket.recv_into(self._buffer)
            if not size:
                raise Ended("the server hung up")
            self._feed(self._buffer[:size])

    def _feed(self, view: memoryview) -> None:
        if self._rest:
            view, self._rest = memoryview(self._rest + bytes(view)), b""
        position, end = 0, len(view)
        while position < end:
            if not self._left:
                size = self._begin(view[position : position + 16])
                if not size:
                    self._rest = bytes(view[position:])
                    return
                position += size
            taken = min(self._left, end - position)
            self._left -= taken
            if self.heard is not None and self._channel != _NOBODY:
                self.heard(self._channel, view[position : position + taken])
            position += taken
            self.counts[self._channel] = self.counts.get(self._channel, 0) + taken
            if self._end and not self._left:
                self.ended.add(self._channel)

    @abstractmethod
    def _begin(self, head: memoryview) -> int:
        """Read the head of a frame: set its channel and length, return the head's own; 0 when it is not whole yet."""


class Spdy(_Connection):
    """A client with streams; a channel is a stream's number."""

    def __init__(self, url: str, version: str = _V4) -> None:
        self._headers = HeaderCodec(1 << 16)
        self._last = -1
        super().__init__(url, {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": version})

    def open(self, *streams: Mapping[str, str]) -> Sequence[int]:
        """Open streams with these headers; their numbers."""
        numbers, frames = [], b""
        for headers in streams:
            self._last += 2
            numbers.append(self._last)
            frames += control(Kind.SYN_STREAM, words(self._last, 0) + bytes(2) + self._headers.encode(list(headers.items())))
        self._socket.sendall(frames)
        return numbers

    def command(self, *names: str) -> Sequence[int]:
        """Open the streams of a command."""
        return self.open(*({"streamType": name} for name in names))

    @staticmethod
    def frame(channel: int, data: bytes, *, end: bool = False) -> bytes:
        """Data of a channel."""
        return data_head(channel, len(data), end=end) + data

    def _begin(self, head: memoryview) -> int:
        if len(head) < 8:
            return 0
        first, second = struct.unpack(">II", head[:8])
        self._channel = _NOBODY if first >> 31 else first
        self._left = second & MAX_FRAME
        self._end = bool(second >> 24 & FLAG_FIN)
        return 8


class WebSocket(_Connection):
    """A client with channels. Of protocol v4 if not told otherwise, which every server of the last years knows."""

    def __init__(self, url: str, protocol: str = _V4) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": protocol}
        super().__init__(url, headers)

    @staticmethod
    def frame(channel: int, data: bytes) -> bytes:
        """A message of a channel, of less than 64 KiB. Masked with zeros, which costs the client nothing and the server as much as any."""
        length = len(data) + 1
        head = struct.pack(">BBI", 0x82, 0x80 | length, 0) if length < 126 else struct.pack(">BBHI", 0x82, 0xFE, length, 0)
        return head + bytes([channel]) + data

    @classmethod
    def end(cls, channel: int) -> bytes:
        """The message of protocol v5 that closes a channel."""
        return cls.frame(_CLOSE_SIGNAL, bytes([channel]))

    def _begin(self, head: memoryview) -> int:
        if len(head) < 2:
            return 0
        length, size = head[1], 2
        if length > 125:
            size = 4 if length == 126 else 10
            if len(head) < size:
                return 0
            length = int.from_bytes(head[2:size], "big")
        if head[0] & 0x0F in (1, 2) and length:
            if len(head) <= size:
                return 0
            self._channel = head[size]
            size, length = size + 1, length - 1
        self._left = length
        return size
