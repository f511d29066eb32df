"""What a kubelet asks every second: lists and statuses of a full node."""

from __future__ import annotations

from collections.abc import Sequence

from bridge._proto.runtime import v1 as cri

from .report import Table
from .rpc import Message
from .servers import Running
from .workload import remove_pod, run_pod

_IDLE = ("sleep", "86400")


async def _fill(server: Running, pods: int, containers: int) -> list[tuple[str, list[str]]]:
    """Run the pods; their sandbox and container ids."""
    made = [await run_pod(server, number, containers, _IDLE) for number in range(pods)]
    return [(sandbox, ids) for _, sandbox, ids in made]


async def _check(server: Running, pods: int, containers: int) -> None:
    """Both servers must know as much before they are compared."""
    sandboxes = await server.rpc.call("ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse)
    listed = await server.rpc.call("ListContainers", cri.ListContainersRequest(), cri.ListContainersResponse)
    running = [item for item in listed.containers if item.state is cri.ContainerState.CONTAINER_RUNNING]
    counts = (len(sandboxes.items), len(running))
    assert counts == (pods, pods * containers), f"{server.name}: {counts} pods and running containers"


def _questions(sandbox: str, container: str) -> dict[str, tuple[str, Message]]:
    """The calls by label: method and request."""
    one_pod = cri.ContainerFilter(pod_sandbox_id=sandbox)
    return {
        "ListPodSandbox": ("ListPodSandbox", cri.ListPodSandboxRequest()),
        "ListContainers": ("ListContainers", cri.ListContainersRequest()),
        "ListContainers of one pod": ("ListContainers", cri.ListContainersRequest(filter=one_pod)),
        "PodSandboxStatus": ("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox)),
        "ContainerStatus": ("ContainerStatus", cri.ContainerStatusRequest(container_id=container)),
        "Version (the wire alone)": ("Version", cri.VersionRequest()),
    }


async def measure(servers: Sequence[Running], *, pods: int = 50, containers: int = 4, rounds: int = 100) -> Table:
    """The calls' latency with ``pods`` × ``containers`` running on each server."""
    filled = {server.name: await _fill(server, pods, containers) for server in servers}
    table = Table(f"{pods} pods × {containers} containers, p50 of {rounds}", "ms", [server.name for server in servers])
    sizes: dict[str, dict[str, int]] = {}
    for server in servers:
        await _check(server, pods, containers)
    for number in range(-5, rounds):
        for server in servers:
            sandbox, ids = filled[server.name][number % pods]
            for label, (method, request) in _questions(sandbox, ids[0]).items():
                elapsed, answer = await server.rpc.timed(method, request)
                sizes.setdefault(label, {})[server.name] = len(answer)
                if number >= 0:
                    table.add(label, server.name, elapsed)
    bulk = ("ListPodSandbox", "ListContainers")
    table.notes.append("Bytes of the answers: " + "; ".join(f"{label} {_sizes(sizes[label])}" for label in bulk) + ".")
    for server in servers:
        for sandbox, _ in filled[server.name]:
            await remove_pod(server, sandbox)
    return table


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{server} {size}" for server, size in sizes.items())
