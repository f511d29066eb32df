"""Clients that load a stream server: many commands at a time, much data with a checksum, many forwarded connections. Blocking, for threads.

Sizes are small enough for every run of the suite; BRIDGE_LOAD=full makes them what the server is meant to bear.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bridge.testing.stream_client import ERROR, PIECE, STDIN, STDOUT, V5, Spdy, WebSocket

FULL = os.environ.get("BRIDGE_LOAD") == "full"
BULK = (1 << 30) if FULL else (48 << 20)
"""Bytes that one stream carries there and back."""
SESSIONS = 200 if FULL else 80
CONNECTIONS = 500
_FORWARD = "portforward.k8s.io"
_MOST_BEHIND = 8
_BATCH = 16


@dataclass(frozen=True)
class Carried:
    """What was sent and what came back."""

    sent: str
    received: str
    size: int


class _Pump:
    """Sends numbered frames from a thread, so that a lost, doubled or misplaced one changes the checksum, and sums up what comes."""

    def __init__(self, client: Spdy | WebSocket, channel: int, size: int, *, echo: int, last: bytes = b"") -> None:
        self._client, self._channel, self._echo, self._last = client, channel, echo, last
        self._frames = size // PIECE
        self._filling = os.urandom(PIECE - 8)
        self._sent, self._received = hashlib.blake2b(), hashlib.blake2b()
        self._size = 0
        self._failure: Exception | None = None
        client.heard = self._hear

    def _hear(self, channel: int, data: memoryview) -> None:
        if channel == self._echo:
            self._received.update(data)
            self._size += len(data)

    def _send(self) -> None:
        try:
            for start in range(0, self._frames, _BATCH):
                pieces = [struct.pack(">Q", number) + self._filling for number in range(start, min(start + _BATCH, self._frames))]
                for piece in pieces:
                    self._sent.update(piece)
                self._client.send_frames(b"".join(self._client.frame(self._channel, piece) for piece in pieces))
            self._client.send_frames(self._last)
        except Exception as exc:  # noqa: BLE001 - raised by run
            self._failure = exc

    def run(self, over: Callable[[], bool]) -> Carried:
        """Send and receive until it is over."""
        sender = threading.Thread(target=self._send, daemon=True)
        sender.start()
        self._client.until(over)
        sender.join()
        if self._failure is not None:
            raise self._failure
        return Carried(self._sent.hexdigest(), self._received.hexdigest(), self._size)


def cat_over_spdy(url: str, size: int) -> Carried:
    """Through the stdin and stdout of a `cat`, to its exit code."""
    with Spdy(url) as client:
        error, stdin, stdout, _ = client.command("error", "stdin", "stdout", "stderr")
        pump = _Pump(client, stdin, size, echo=stdout, last=client.frame(stdin, b"", end=True))
        return pump.run(lambda: error in client.ended)


def cat_over_websocket(url: str, size: int) -> Carried:
    """The same, with protocol v5, which can tell the end of stdin."""
    with WebSocket(url, V5) as client:
        pump = _Pump(client, STDIN, size, echo=STDOUT, last=client.end(STDIN))
        return pump.run(lambda: client.counts.get(ERROR, 0) > 0)


def _pair(port: int, number: int) -> tuple[dict[str, str], dict[str, str]]:
    common = {"port": str(port), "requestID": str(number)}
    return {"streamType": "error", **common}, {"streamType": "data", **common}


def through_a_port(url: str, port: int, size: int) -> Carried:
    """Through one forwarded connection to a server that sends back what it gets, to the end of both halves."""
    with Spdy(url, _FORWARD) as client:
        error, data = client.open(*_pair(port, 0))
        last = client.frame(error, b"", end=True) + client.frame(data, b"", end=True)
        return _Pump(client, data, size, echo=data, last=last).run(lambda: data in client.ended)


@contextmanager
def open_connections(url: str, port: int, count: int) -> Iterator[Callable[[], int]]:
    """``count`` connections through one session, all open at once, each known by the word that it had back.

    The block is given what says a second word on all of them at the same time, and closes them; it returns how many had that back
    too. An echo server with a short queue is given a few at a time.
    """
    with Spdy(url, _FORWARD) as client:
        said: dict[int, bytes] = {}
        came: dict[int, bytearray] = {}
        client.heard = lambda channel, data: came.setdefault(channel, bytearray()).extend(data)
        behind: set[int] = set()

        def answered_but(most: int) -> bool:
            behind.difference_update([data for data in behind if len(came.get(data, b"")) >= len(said[data])])
            return len(behind) <= most

        for number in range(count):
            _, data = client.open(*_pair(port, number))
            said[data] = b"connection %d;" % number
            behind.add(data)
            client.send_frames(client.frame(data, said[data]))
            client.until(lambda: answered_but(_MOST_BEHIND))
        client.until(lambda: answered_but(0))

        def again() -> int:
            frames = []
            for data, word in said.items():
                frames.append(client.frame(data, word) + client.frame(data, b"", end=True))
            client.send_frames(b"".join(frames))
            client.until(lambda: said.keys() <= client.ended)
            return sum(bytes(came[data]) == word + word for data, word in said.items())

        yield again
