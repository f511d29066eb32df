"""Exec and port-forward as clients have them: how long a command takes there and back, and what a stream carries.

Each figure is a whole of its kind: the RPC that gives the URL, the connection to it, and all until the last byte has come. The
client is one for both servers (``stream_client``); it, the server and what runs in the pod share the machine's processors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as cri
from bridge.testing.stream_client import ERROR, PIECE, STDIN, STDOUT, Spdy, WebSocket

from .report import Table
from .servers import Running
from .workload import make_container, make_pod, remove_pod

MEBIBYTE = 1 << 20
_FORWARD = "portforward.k8s.io"
_AT_ONCE = 16
"""Forwarded connections that a client keeps open while it makes many."""
_SENDS = 32
"""Frames that the client hands to the kernel at once."""


@dataclass(frozen=True)
class Target:
    """A pod with one container that may use all of the machine, and an echo server in its network."""

    server: Running
    sandbox: str
    container: str
    port: int

    async def exec_url(self, *argv: str, stdin: bool = False) -> str:
        """Where to run ``argv``."""
        request = cri.ExecRequest(container_id=self.container, cmd=list(argv), stdin=stdin, stdout=True, stderr=True)
        return (await self.server.rpc.call("Exec", request, cri.ExecResponse)).url

    async def forward_url(self) -> str:
        """Where to forward ports of the pod."""
        request = cri.PortForwardRequest(pod_sandbox_id=self.sandbox, port=[self.port])
        return (await self.server.rpc.call("PortForward", request, cri.PortForwardResponse)).url


@asynccontextmanager
async def _target(server: Running) -> AsyncIterator[Target]:
    pod = make_pod(server, 0)
    config = make_container(pod, "c0", ("sleep", "86400"))
    for linux in (pod.config.linux, config.linux):
        assert linux is not None
        assert linux.resources is not None
        linux.resources.cpu_quota = 0  # else `cat` would be measured
    call = server.rpc.call
    sandbox = (await call("RunPodSandbox", cri.RunPodSandboxRequest(config=pod.config), cri.RunPodSandboxResponse)).pod_sandbox_id
    request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=pod.config)
    container = (await call("CreateContainer", request, cri.CreateContainerResponse)).container_id
    await call("StartContainer", cri.StartContainerRequest(container_id=container), cri.StartContainerResponse)
    asked = cri.ContainerStatusRequest(container_id=container, verbose=True)
    pid = json.loads((await call("ContainerStatus", asked, cri.ContainerStatusResponse)).info["info"])["pid"]
    echo = subprocess.Popen(["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-m", "benchmarks.echo"], stdout=subprocess.PIPE)
    try:
        assert echo.stdout is not None
        yield Target(server, sandbox, container, int(await run_sync(echo.stdout.readline)))
    finally:
        echo.kill()
        echo.communicate()
        await remove_pod(server, sandbox)


async def measure(servers: Sequence[Running], *, rounds: int, mebibytes: int, connections: int = 400) -> list[Table]:
    """Round trips in ms, and what streams of ``mebibytes`` and many short connections reach."""
    names = [server.name for server in servers]
    trips = Table(f"Commands there and back, {rounds} of each", "ms", names)
    rates = Table(f"Streams, {mebibytes} MiB there and back", "MB/s, more is better", names, shares=(0.5,))
    many = Table("Port-forward: connections one after another", "a second, more is better", names, shares=(0.5,))
    for table in (rates, many):
        table.notes.append("The ratio is ours over theirs: above 1 is faster.")
    async with _both(servers) as targets:
        for number in range(-2, rounds):
            for target in targets:
                for label, elapsed in (await _trips(target)).items():
                    if number >= 0:
                        trips.add(label, target.server.name, elapsed)
        for number in range(-1, max(5, rounds // 8)):
            for target in targets:
                found = await _rates(target, (mebibytes if number >= 0 else 8) * MEBIBYTE)
                found_many = await run_sync(_connect_often, await target.forward_url(), target.port, connections)
                if number >= 0:
                    for label, rate in found.items():
                        rates.add(label, target.server.name, rate)
                    many.add(f"{connections} connections, {_AT_ONCE} at once", target.server.name, found_many)
    return [trips, rates, many]


@asynccontextmanager
async def _both(servers: Sequence[Running]) -> AsyncIterator[list[Target]]:
    if not servers:
        yield []
        return
    async with _target(servers[0]) as first, _both(servers[1:]) as others:
        yield [first, *others]


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
    with Spdy(url, _FORWARD) as client:
        error, data = client.open(*_pair(port, 0))
        begin = time.perf_counter()
        with _sending(client, client.frame(data, bytes(PIECE)), size, last=client.frame(error, b"", end=True)):
            client.until(lambda: client.counts.get(data, 0) >= size)
        return size / (time.perf_counter() - begin) / 1e6


def _pair(port: int, number: int) -> tuple[dict[str, str], dict[str, str]]:
    """The headers of a forwarded connection's streams; the error stream comes first, as with kubectl."""
    common = {"port": str(port), "requestID": str(number)}
    return {"streamType": "error", **common}, {"streamType": "data", **common}


def _connect_often(url: str, port: int, count: int) -> float:
    """Forwarded connections a second: each says a word and closes, and is done once it has heard the answer."""
    with Spdy(url, _FORWARD) as client:
        begin = time.perf_counter()
        running: set[int] = set()
        for number in range(count):
            error, data = client.open(*_pair(port, number))
            client.send_frames(client.frame(error, b"", end=True) + client.frame(data, b"ping", end=True))
            running.add(data)
            if len(running) == _AT_ONCE:
                client.until(lambda: not running.isdisjoint(client.counts))
                running.difference_update(client.counts)
        client.until(lambda: running <= client.counts.keys())
        elapsed = time.perf_counter() - begin
        return count / elapsed


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
