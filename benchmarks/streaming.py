"""Exec and port-forward as clients have them: how long a command takes there and back, and what a stream carries.

Each figure is a whole of its kind: the RPC that gives the URL, the connection to it, and all until the last byte has come. The
client is one for both servers (``stream_client``); it, the server and what runs in the pod share the machine's processors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as cri
from bridge.testing.stream_client import ERROR, PIECE, STDIN, STDOUT, Spdy, WebSocket

from .report import Table
from .servers import Running
from .stream_target import FORWARD, Target, forwarded_pair, targets_of

MEBIBYTE = 1 << 20
_SENDS = 32
"""Frames that the client hands to the kernel at once."""


async def measure(servers: Sequence[Running], *, rounds: int, mebibytes: int) -> list[Table]:
    """Round trips in ms, and what streams of ``mebibytes`` reach."""
    names = [server.name for server in servers]
    trips = Table(f"Commands there and back, {rounds} of each", "ms", names)
    rates = Table(f"Streams, {mebibytes} MiB there and back", "MB/s, more is better", names, shares=(0.5,))
    rates.notes.append("The ratio is ours over theirs: above 1 is faster.")
    async with targets_of(servers) as targets:
        for number in range(-2, rounds):
            for target in targets:
                for label, elapsed in (await _trips(target)).items():
                    if number >= 0:
                        trips.add(label, target.server.name, elapsed)
        for number in range(-1, max(5, rounds // 8)):
            for target in targets:
                found = await _rates(target, (mebibytes if number >= 0 else 8) * MEBIBYTE)
                if number >= 0:
                    for label, rate in found.items():
                        rates.add(label, target.server.name, rate)
    return [trips, rates]


async def _trips(target: Target) -> dict[str, float]:
    """Milliseconds that `true` takes: by ExecSync, and over each transport until its exit code is here."""
    request = cri.ExecSyncRequest(container_id=target.container, cmd=["true"], timeout=10)
    sync, _ = await target.server.rpc.timed("ExecSync", request)
    found = {"ExecSync": sync}
    for label, run in (("Exec, SPDY", _true_over_spdy), ("Exec, WebSocket", _true_over_websocket)):
        begin = time.perf_counter()
        url = await target.exec_url("true")
        await run_sync(run, url)
        found[label] = (time.perf_counter() - begin) * 1000
    return found


def _true_over_spdy(url: str) -> None:
    with Spdy(url) as client:
        error, _, _ = client.command("error", "stdout", "stderr")
        client.until(lambda: client.counts.get(error, 0) > 0)  # a status, also of success


def _true_over_websocket(url: str) -> None:
    with WebSocket(url) as client:
        client.until(lambda: client.counts.get(ERROR, 0) > 0)


async def _rates(target: Target, size: int) -> dict[str, float]:
    """MB/s (10^6 bytes of payload, counted once) of `cat` over each transport and of a forwarded connection."""
    return {
        "exec cat, SPDY": await run_sync(_cat_over_spdy, await target.exec_url("cat", stdin=True), size),
        "exec cat, WebSocket": await run_sync(_cat_over_websocket, await target.exec_url("cat", stdin=True), size),
        "port-forward, SPDY": await run_sync(_forward, await target.forward_url(), target.port, size),
    }


def _cat_over_spdy(url: str, size: int) -> float:
    with Spdy(url) as client:
        error, stdin, stdout, _ = client.command("error", "stdin", "stdout", "stderr")
        begin = time.perf_counter()
        with _sending(client, client.frame(stdin, bytes(PIECE)), size, last=client.frame(stdin, b"", end=True)):
            client.until(lambda: client.counts.get(error, 0) > 0)
        assert client.counts[stdout] == size, f"{client.counts} of {size} bytes"
        return size / (time.perf_counter() - begin) / 1e6


def _cat_over_websocket(url: str, size: int) -> float:
    """No server of protocol v4 can be told the end of stdin: what is measured ends with the last byte."""
    with WebSocket(url) as client:
        begin = time.perf_counter()
        with _sending(client, client.frame(STDIN, bytes(PIECE)), size):
            client.until(lambda: client.counts.get(STDOUT, 0) >= size)
        return size / (time.perf_counter() - begin) / 1e6


def _forward(url: str, port: int, size: int) -> float:
    with Spdy(url, FORWARD) as client:
        error, data = client.open(*forwarded_pair(port, 0))
        begin = time.perf_counter()
        with _sending(client, client.frame(data, bytes(PIECE)), size, last=client.frame(error, b"", end=True)):
            client.until(lambda: client.counts.get(data, 0) >= size)
        return size / (time.perf_counter() - begin) / 1e6


class _sending:  # noqa: N801 - a context manager by its use
    """Sends ``size`` bytes as copies of ``frame`` from a thread while the block runs, ``last`` behind them."""

    def __init__(self, client: Spdy | WebSocket, frame: bytes, size: int, *, last: bytes = b"") -> None:
        self._client = client
        self._batch = frame * _SENDS
        self._batches, rest = divmod(size, PIECE * _SENDS)
        self._last = frame * (rest // PIECE) + last
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _send(self) -> None:
        for _ in range(self._batches):
            self._client.send_frames(self._batch)
        if self._last:
            self._client.send_frames(self._last)
