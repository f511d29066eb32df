"""Thousands of pods, one after the other: whatever a pod leaves behind adds up until it shows.

A cycle is RunPodSandbox, CreateContainer, StartContainer, ExecSync, StopContainer, RemoveContainer, StopPodSandbox, RemovePodSandbox;
a few are under way at once, as with a kubelet. Every so often they are let end, and what server, monitor and kernel hold is counted.
Counts must be what they were after the warm-up. Memory moves by itself (allocators, caches that fill): it may grow by ``SLACK_MIB``
and no more, however many cycles there are.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as cri

from .memory import pss_mib
from .node import Node, started
from .servers import Options, Running
from .workload import make_container, make_pod
from .workspace import Workspace

SLACK_MIB = 4.0
_DATABASE_SLACK = 4300
"""KiB: SQLite lets its log grow to a thousand pages and then writes it again from its beginning."""
_SETTLE = 60.0


@dataclass(frozen=True)
class Sample:
    """What is held while no pod is there. Memory is Pss_Anon: PSS of files depends on who else maps them."""

    cycles: int
    seconds: float
    server_fds: int
    monitor_fds: int
    server_threads: int
    tasks: int
    mounts: int
    files: int
    cgroups: int
    database_kib: int
    server_mib: float
    monitor_mib: float


async def _load(server: Running) -> dict[str, int]:
    answer = await server.rpc.call("Status", cri.StatusRequest(verbose=True), cri.StatusResponse)
    return dict(json.loads(answer.info["load"]))


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _cgroups(workspace: Workspace) -> int:
    return sum(len(list(os.walk(mount / workspace.name))) for mount in set(workspace.hierarchies.values()))


def _database_kib(state: Path) -> int:
    return sum(path.stat().st_size for path in state.glob("state.db*")) // 1024


def _files(node: Node) -> int:
    """Files and directories that the server keeps for pods: /run, writable layers, addresses."""
    tops = (node.run, node.state / "images" / "snapshots", node.directory / "ipam")
    return sum(len(directories) + len(files) for top in tops for _, directories, files in os.walk(top))


async def sample(node: Node, server: Running, cycles: int, began: float) -> Sample:
    """Count, once what goes on behind the last answer is over: the counts of two looks are the same."""
    before: Sample | None = None
    with anyio.move_on_after(_SETTLE):
        while True:
            found = Sample(
                cycles,
                time.monotonic() - began,
                _fds(node.pid),
                _fds(node.monitor),
                len(os.listdir(f"/proc/{node.pid}/task")),
                (await _load(server))["tasks"],
                Path("/proc/self/mountinfo").read_text().count(f" {node.workspace.root}/"),
                _files(node),
                _cgroups(node.workspace),
                _database_kib(node.state),
                pss_mib(node.pid, "Pss_Anon"),
                pss_mib(node.monitor, "Pss_Anon"),
            )
            if before is not None and _counts(found) == _counts(before):
                return found
            before = found
            await anyio.sleep(1.0)
    assert before is not None
    return before


def _counts(found: Sample) -> Sequence[int]:
    return found.server_fds, found.monitor_fds, found.tasks, found.cgroups, found.files


async def cycle(server: Running, number: int) -> None:
    """One pod's life. Raises AssertionError when a step did not do what it says."""
    pod = make_pod(server, number)
    call = server.rpc.call
    sandbox = (await call("RunPodSandbox", cri.RunPodSandboxRequest(config=pod.config), cri.RunPodSandboxResponse)).pod_sandbox_id
    create = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=make_container(pod, "main"), sandbox_config=pod.config)
    ident = (await call("CreateContainer", create, cri.CreateContainerResponse)).container_id
    await call("StartContainer", cri.StartContainerRequest(container_id=ident), cri.StartContainerResponse)
    execute = cri.ExecSyncRequest(container_id=ident, cmd=["echo", "ok"], timeout=30)
    answer = await call("ExecSync", execute, cri.ExecSyncResponse)
    assert (answer.exit_code, answer.stdout) == (0, b"ok\n"), f"ExecSync gave {answer}"
    await call("StopContainer", cri.StopContainerRequest(container_id=ident, timeout=1), cri.StopContainerResponse)
    await call("RemoveContainer", cri.RemoveContainerRequest(container_id=ident), cri.RemoveContainerResponse)
    await call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox), cri.StopPodSandboxResponse)
    await call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox), cri.RemovePodSandboxResponse)
    server.workspace.remove_pod_cgroup(server.name, pod.uid)


async def _cycles(server: Running, first: int, count: int, at_once: int) -> None:
    numbers = iter(range(first, first + count))

    async def worker() -> None:
        for number in numbers:
            await cycle(server, number)

    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(worker)


def faults(samples: Sequence[Sample]) -> list[str]:
    """What grew between the first sample and the last; nothing when all is flat."""
    first, last = samples[0], samples[-1]
    found = []
    for field in fields(Sample)[2:]:
        before, after = getattr(first, field.name), getattr(last, field.name)
        slack = SLACK_MIB if field.name.endswith("_mib") else _DATABASE_SLACK if field.name == "database_kib" else _slack(field.name)
        if after > before + slack:
            found.append(f"{field.name}: {before:g} became {after:g} in {last.cycles - first.cycles} cycles")
    return found


def _slack(name: str) -> int:
    # Worker threads come and go with the load, and a connection or a retry may be under way; what leaks does so with every cycle.
    return {"server_threads": 40, "server_fds": 2, "monitor_fds": 2, "tasks": 2}.get(name, 0)


def markdown(samples: Sequence[Sample]) -> str:
    """The samples as a table."""
    names = [field.name for field in fields(Sample)]
    rows = [
        " | ".join(f"{getattr(found, name):.1f}" if name.endswith("_mib") else f"{getattr(found, name):.0f}" for name in names)
        for found in samples
    ]
    heads = " | ".join(name.replace("_", " ") for name in names)
    return "\n".join([f"| {heads} |", f"|{' ---: |' * len(names)}", *(f"| {row} |" for row in rows)])


async def soak(workspace: Workspace, options: Options, *, cycles: int, at_once: int, samples: int = 10) -> list[Sample]:
    """Run the cycles on a server of its own; samples, the first after a warm-up of a tenth (at least 20 cycles)."""
    with Node(workspace, options) as node:
        await started(node)
        async with node.connected() as server:
            began, done = time.monotonic(), 0
            warm_up = max(20, cycles // 10)
            await _cycles(server, 0, warm_up, at_once)
            found = [await sample(node, server, warm_up, began)]
            done = warm_up
            step = max(1, cycles // samples)
            while done < warm_up + cycles:
                count = min(step, warm_up + cycles - done)
                await _cycles(server, done, count, at_once)
                done += count
                found.append(await sample(node, server, done, began))
                print(markdown(found[-1:]).splitlines()[-1], flush=True)
            return found
