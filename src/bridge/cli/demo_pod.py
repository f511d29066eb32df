"""One pod of the demo: two containers that talk over the pod's network, their logs, an exec, the time that it took."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.demo_host import DemoHost
from bridge.cli.narration import Narration
from bridge.cli.waterfall import draw
from bridge.client import CriClient, CriError
from bridge.errors import BridgeError, TimedOut

_SERVER = """
mkdir /www && echo 'hello from the first container' > /www/index.html
echo serving on $(hostname):8080
exec httpd -f -p 8080 -h /www
"""
_ASKER = """
until wget -q -O - http://127.0.0.1:8080/ 2>/dev/null; do sleep 0.05; done
echo "that is what the second container got"
exec sleep 600
"""
_EXEC = "id; ip -4 -o addr show eth0 | tr -s ' '; grep -E '^(Seccomp|NoNewPrivs|CapEff)' /proc/self/status | tr '\\t' ' '"
_LOG_TIMEOUT = 20.0


async def show_pod(tell: Narration, client: CriClient, host: DemoHost, handler: str, image: str) -> None:
    """Run, show and remove a pod on ``handler``. Raises what the server answers, after removing the pod."""
    tell.heading(f"A pod on handler {handler}")
    config = await _pod_config(client, host, handler)
    began = time.monotonic()
    pod = (await client.runtime.run_pod_sandbox(pb.RunPodSandboxRequest(config=config, runtime_handler=handler))).pod_sandbox_id
    try:
        first = await _start(client, pod, config, image, "server", _SERVER)
        await _start(client, pod, config, image, "asker", _ASKER)
        took = (time.monotonic() - began) * 1000
        status = (await client.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))).status
        address = status.network.ip if status and status.network else "no address"
        tell.fact(f"pod {pod[:13]} with two containers, {address}, in {took:.0f} ms")
        await _show_log(tell, Path(config.log_directory), "server", lambda lines: len(lines) >= 1)
        await _show_log(tell, Path(config.log_directory), "asker", lambda lines: len(lines) >= 2)
        await _show_exec(tell, client, first)
        trace = await client.admin.trace(admin.TraceRequest(pod_sandbox_id=pod))
        tell.fact("where the start spent its time:")
        for line in draw(trace.spans, width=min(110, shutil.get_terminal_size((110, 24)).columns) - 2):
            tell.fact(line)
    except BridgeError:
        await _show_containers(tell, client, pod)
        raise
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 60):
            ended = time.monotonic()
            await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
            tell.fact(f"stopped and removed in {(time.monotonic() - ended) * 1000:.0f} ms")


async def _pod_config(client: CriClient, host: DemoHost, handler: str) -> pb.PodSandboxConfig:
    """A pod as a kubelet asks for one, its cgroup below the demo's own."""
    linux = (await client.runtime.runtime_config()).linux
    systemd = linux is not None and linux.cgroup_driver == pb.CgroupDriver.SYSTEMD
    parent = f"{host.name}.slice" if systemd else f"/{host.name}/{handler}"
    logs = host.logs / handler
    logs.mkdir()
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=f"demo-{handler}", namespace="default", uid=str(uuid.uuid4())),
        hostname=f"demo-{handler}",
        log_directory=str(logs),
        labels={"app": "demo"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=parent,
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=_namespaces(), seccomp=_seccomp()),
        ),
    )


async def _start(client: CriClient, pod: str, config: pb.PodSandboxConfig, image: str, name: str, script: str) -> str:
    container = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=image),
        command=["sh", "-c", script],
        log_path=f"{name}.log",
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(cpu_shares=256, memory_limit_in_bytes=64 << 20),
            security_context=pb.LinuxContainerSecurityContext(namespace_options=_namespaces(), seccomp=_seccomp(), no_new_privs=True),
        ),
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    made = (await client.runtime.create_container(request)).container_id
    await client.runtime.start_container(pb.StartContainerRequest(container_id=made))
    return made


def _namespaces() -> pb.NamespaceOption:
    return pb.NamespaceOption(network=pb.NamespaceMode.POD, ipc=pb.NamespaceMode.POD, pid=pb.NamespaceMode.CONTAINER)


def _seccomp() -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.RuntimeDefault)


async def _show_containers(tell: Narration, client: CriClient, pod: str) -> None:
    """What became of the pod's containers, for whoever must find out why the demo failed."""
    listed = await client.runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod)))
    for one in listed.containers:
        status = (await client.runtime.container_status(pb.ContainerStatusRequest(container_id=one.id))).status
        if status and status.metadata:
            ended = f"exit code {status.exit_code}, {status.reason} {status.message}" if status.finished_at else ""
            tell.verdict(False, f"container {status.metadata.name} is {pb.ContainerState(status.state).name} {ended}".rstrip())


async def _show_exec(tell: Narration, client: CriClient, container: str) -> None:
    """A command in the container, or why there can be none: a handler may lack that."""
    try:
        answer = await client.runtime.exec_sync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", _EXEC], timeout=10))
    except CriError as exc:
        if exc.code is not Status.UNIMPLEMENTED:
            raise
        tell.fact(exc.message)
    else:
        tell.quote("exec  ", (answer.stdout + answer.stderr).decode(errors="replace").splitlines())


async def _show_log(tell: Narration, directory: Path, name: str, enough: Callable[[list[str]], bool]) -> None:
    """Quote the container's log once ``enough`` of it is there. Its lines are ``time stream tag text`` (CRI log format)."""
    path = directory / f"{name}.log"
    deadline = time.monotonic() + _LOG_TIMEOUT
    while time.monotonic() < deadline:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if enough(lines):
            tell.quote(f"{name:<6}", (line.split(" ", 3)[3] for line in lines))
            return
        await anyio.sleep(0.02)
    raise TimedOut(f"container {name} wrote no log to {path} within {_LOG_TIMEOUT:g} s")
