"""How soon a server that was restarted answers on a full node: the first List, and READY=1 once all pods are taken over."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as cri

from .memory import pss_mib
from .node import Node, first_list, started
from .report import Table
from .servers import Options, Running
from .workload import run_pod
from .workspace import Workspace

_IDLE = ("sleep", "86400")
_AT_ONCE = 4
FIRST = "server executed → first List answered"
FIRST_CPU = "… CPU time of the server in that"
ADOPTED = "server executed → READY=1, all pods taken over"
ADOPTED_CPU = "… CPU time of the server in all"
_KINDS = {"SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}


async def fill(server: Running, pods: int, containers: int) -> None:
    """Run ``pods`` × ``containers`` that do nothing, some at once."""
    numbers = iter(range(pods))

    async def worker() -> None:
        for number in numbers:
            await run_pod(server, number, containers, _IDLE)

    async with anyio.create_task_group() as group:
        for _ in range(_AT_ONCE):
            group.start_soon(worker)


async def _check(server: Running, containers: int) -> None:
    """Everything runs, and the first container can be worked with."""
    listed = (await server.rpc.call("ListContainers", cri.ListContainersRequest(), cri.ListContainersResponse)).containers
    running = [found.id for found in listed if found.state is cri.ContainerState.CONTAINER_RUNNING]
    assert len(running) == containers, f"{len(running)} of {containers} containers run"
    execute = cri.ExecSyncRequest(container_id=running[0], cmd=["echo", "ok"], timeout=30)
    answer = await server.rpc.call("ExecSync", execute, cri.ExecSyncResponse)
    assert answer.stdout == b"ok\n", answer
    status = await server.rpc.call("Status", cri.StatusRequest(verbose=True), cri.StatusResponse)
    assert json.loads(status.info["network"])["ready"], status.info["network"]


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far. Source: fields 14 and 15 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _restart(node: Node, number: signal.Signals, containers: int) -> list[float]:
    """Seconds and the server's CPU seconds until the first List, and both until READY=1."""
    node.end(number)
    begin = time.perf_counter()
    node.spawn()
    ready = 0.0

    async def wait_ready() -> None:
        nonlocal ready
        ready = await anyio.to_thread.run_sync(node.wait_ready)

    async with anyio.create_task_group() as group:
        group.start_soon(wait_ready)
        listed, count = await first_list(node.socket)
        spent = cpu_seconds(node.pid)
    assert count == containers, f"the first List told of {count} containers"
    return [listed - begin, spent, ready - begin, cpu_seconds(node.pid)]


async def measure(workspace: Workspace, options: Options, *, pods: int, containers: int, rounds: int) -> Table:
    """``pods`` × ``containers`` running; ``rounds`` restarts of each kind, alternating."""
    table = Table(f"Restart with {pods} pods × {containers} containers ({options.runtime.name}), {rounds} rounds", "", ["cri-bridge"])
    add = functools.partial(table.add, server="cri-bridge")
    total = pods * containers
    with Node(workspace, options) as node:
        await started(node)
        async with node.connected() as server:
            await fill(server, pods, containers)
        for _ in range(rounds):
            for kind, number in _KINDS.items():
                seconds = await _restart(node, number, total)
                for label, value in zip((FIRST, FIRST_CPU, ADOPTED, ADOPTED_CPU), seconds, strict=True):
                    add(f"{kind}: {label} (ms)", value=value * 1000)
                async with node.connected() as server:
                    await _check(server, total)
                add("PSS of the server (MiB)", value=pss_mib(node.pid))
                add("PSS of the monitor (MiB)", value=pss_mib(node.monitor))
    return table
