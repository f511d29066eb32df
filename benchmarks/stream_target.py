"""What the benchmarks of streams talk to: on each server a pod with a container, and an echo server in its network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as cri

from .servers import Running
from .workload import make_container, make_pod, remove_pod

FORWARD = "portforward.k8s.io"


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


@asynccontextmanager
async def targets_of(servers: Sequence[Running]) -> AsyncIterator[list[Target]]:
    """A target on each server."""
    if not servers:
        yield []
        return
    async with _target(servers[0]) as first, targets_of(servers[1:]) as others:
        yield [first, *others]


def forwarded_pair(port: int, number: int) -> tuple[dict[str, str], dict[str, str]]:
    """The headers of a forwarded connection's streams; the error stream comes first, as with kubectl."""
    common = {"port": str(port), "requestID": str(number)}
    return {"streamType": "error", **common}, {"streamType": "data", **common}
