"""Statistics and metrics of a full node: how long the lists take, and what they cost while a kubelet asks every ten seconds."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence

import anyio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bridge._proto.runtime import v1 as cri

from .report import Table
from .restart import cpu_seconds, fill
from .rpc import Message
from .servers import Running

_CALLS: dict[str, Message] = {
    "ListContainerStats": cri.ListContainerStatsRequest(),
    "ListPodSandboxStats": cri.ListPodSandboxStatsRequest(),
    "ListPodSandboxMetrics": cri.ListPodSandboxMetricsRequest(),
}
_KUBELET_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
"""Between two questions of the first table: nobody asks without a pause, and what a server does after an answer is its own time."""


async def _known(server: Running) -> list[str]:
    """The calls that the server has."""
    found = []
    for method, request in _CALLS.items():
        try:
            await server.rpc.timed(method, request)
        except GRPCError as exc:
            if exc.status is not Status.UNIMPLEMENTED:
                raise
        else:
            found.append(method)
    return found


async def _check(server: Running, pods: int, containers: int) -> None:
    """Each server must tell of as much before they are compared."""
    stats = await server.rpc.call("ListPodSandboxStats", _CALLS["ListPodSandboxStats"], cri.ListPodSandboxStatsResponse)
    told = [one for pod in stats.stats if pod.linux is not None for one in pod.linux.containers if one.cpu is not None]
    assert (len(stats.stats), len(told)) == (pods, pods * containers), f"{server.name}: {len(stats.stats)} pods, {len(told)} containers"


async def _latency(servers: Sequence[Running], rounds: int, title: str) -> Table:
    table = Table(f"{title}, {rounds} rounds", "ms", [server.name for server in servers], shares=(0.5, 0.99))
    calls = {server.name: await _known(server) for server in servers}
    sizes: dict[str, list[str]] = {}
    for number in range(-2, rounds):
        for method, request in _CALLS.items():
            for server in servers:
                if method in calls[server.name]:
                    elapsed, answer = await server.rpc.timed(method, request)
                    if number >= 0:
                        table.add(method, server.name, elapsed)
                    if number == 0:
                        sizes.setdefault(method, []).append(f"{server.name} {len(answer)}")
                    await anyio.sleep(_PAUSE_SECONDS)
    table.notes.append("Bytes of the answers: " + "; ".join(f"{method} {', '.join(some)}" for method, some in sizes.items()) + ".")
    table.notes += [f"{server.name} has no {method}." for server in servers for method in _CALLS if method not in calls[server.name]]
    return table


def _spent(server: Running) -> float:
    """CPU seconds so far of the server and of all that it started but containers."""
    total = 0.0
    for pid in server.workspace.processes(server.name):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += cpu_seconds(pid)
    return total


async def _share(server: Running, calls: Sequence[str], seconds: float) -> float:
    """Per cent of one core while ``calls`` come every ten seconds."""
    began, spent = time.perf_counter(), _spent(server)
    while time.perf_counter() - began < seconds:
        for method in calls:
            await server.rpc.timed(method, _CALLS[method])
        await anyio.sleep(_KUBELET_SECONDS)
    return 100 * (_spent(server) - spent) / (time.perf_counter() - began)


async def _cost(servers: Sequence[Running], seconds: float, title: str) -> Table:
    """Each server alone, one after the other."""
    table = Table(f"{title}, CPU of the server with its helpers", "% of one core", [server.name for server in servers], shares=())
    for server in servers:
        add = functools.partial(table.add, server=server.name)
        known = await _known(server)
        for method in known:
            add(f"{method} every 10 s", value=await _share(server, [method], seconds))
        add("all of them every 10 s", value=await _share(server, known, seconds))
    table.notes.append(f"Over {seconds:g} s each.")
    return table


async def measure(servers: Sequence[Running], *, pods: int, containers: int, rounds: int, seconds: float) -> list[Table]:
    """Both tables with ``pods`` × ``containers`` running on each server."""
    title = f"Statistics of {pods} pods × {containers} containers"
    for server in servers:
        await fill(server, pods, containers)
        await _check(server, pods, containers)
    return [await _latency(servers, rounds, title), await _cost(servers, seconds, title)]
