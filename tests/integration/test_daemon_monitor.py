"""The monitor is killed, alone or with the server: containers go on, their exits are told, and they can be stopped and removed."""

import os
import platform
import re
import time

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError, connect
from bridge.host import cgroups
from bridge.host.cgroup_paths import pod_cgroup
from tests.crash.stream_operations import READS, converse
from tests.integration import pod_cgroups
from tests.integration.daemon_fixtures import handler, own_node
from tests.integration.daemon_node import DaemonNode, Kubelet, mark, namespaces, processes

__all__ = ["handler", "own_node"]
pytestmark = pytest.mark.root

RUNNING = pb.ContainerState.CONTAINER_RUNNING
# Since Linux 6.15 a pidfd tells how a process ended whoever's child it was; before, nobody knows of one that lost its monitor.
KERNEL_TELLS = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) >= (6, 15)
WAITS = "until [ -e /flags/{0} ]; do sleep 0.02; done; exit {1}"


def told(code: int) -> int:
    """The exit code that is reported of a container that ends with ``code`` after the loss of its monitor."""
    return code if KERNEL_TELLS else 255


async def ready_again(cri: CriClient) -> float:
    """Seconds until RuntimeReady."""
    began = time.monotonic()
    with anyio.fail_after(30):
        while True:
            status = (await cri.runtime.status()).status
            assert status is not None
            if all(condition.status for condition in status.conditions):
                return time.monotonic() - began
            await anyio.sleep(0.02)


class Scene:
    """A pod with a shared PID namespace and one without, their containers waiting for a flag each."""

    def __init__(self, node: DaemonNode, handler: str) -> None:
        self.node = node
        self.handler = handler
        self.flags = node.root / "flags"
        self.flags.mkdir()

    async def set(self, cri: CriClient) -> Kubelet:
        kubelet = Kubelet(self.node, cri, self.handler)
        self.configs = kubelet.configs
        self.pod = await kubelet.run()
        self.shared = await kubelet.run(options=namespaces(pid=pb.NamespaceMode.POD))
        self.during = await self.waiting(kubelet, "during", 4)
        self.after = await self.waiting(kubelet, "after", 6)
        self.stopped = await kubelet.started(self.pod, "trap 'exit 3' TERM; while :; do sleep 0.02; done", name="stopped")
        self.made = await kubelet.create(self.pod, name="made")
        self.member = await kubelet.started(self.shared, name="member", options=namespaces(pid=pb.NamespaceMode.POD))
        self.pause = (await kubelet.pod_info(self.shared))["pid"]
        return kubelet

    async def waiting(self, kubelet: Kubelet, name: str, code: int) -> str:
        mount = pb.Mount(container_path="/flags", host_path=str(self.flags))
        return await kubelet.started(self.pod, WAITS.format(name, code), name=name, mounts=[mount])

    async def check(self, cri: CriClient) -> None:
        """What must hold once server and monitor are back."""
        kubelet = Kubelet(self.node, cri, self.handler)
        kubelet.configs = self.configs
        for container in (self.after, self.stopped, self.member):
            assert (await kubelet.status(container)).state is RUNNING
        assert await kubelet.output(self.after, "echo exec") == "exec"
        (self.flags / "after").touch()
        assert (await kubelet.exited(self.after)).exit_code == told(6)
        await kubelet.stop(self.stopped, 10)
        assert (await kubelet.status(self.stopped)).exit_code == told(3)
        await kubelet.start(self.made)
        assert await kubelet.output(self.made, "echo new") == "new"
        assert (await kubelet.pod_status(self.shared)).state is pb.PodSandboxState.SANDBOX_READY
        os.kill(self.pause, 9)
        assert (await kubelet.exited(self.member)).exit_code == told(137)
        with anyio.fail_after(30):
            while (await kubelet.pod_status(self.shared)).state is pb.PodSandboxState.SANDBOX_READY:
                await anyio.sleep(0.02)
        await kubelet.clean()


async def test_the_monitor_is_killed(own_node: DaemonNode, handler: str) -> None:
    scene = Scene(own_node, handler)
    async with connect(own_node.socket) as cri:
        kubelet = await scene.set(cri)
        reader = await kubelet.started(scene.pod, READS, name="reader", stdin=True)
        late = await kubelet.create(scene.pod, name="late")
        session = (await cri.runtime.attach(pb.AttachRequest(container_id=reader, stdin=True, stdout=True, stderr=True))).url
        await own_node.kill_monitor()
        (scene.flags / "during").touch()
        async with anyio.create_task_group() as group:  # what comes in the second without a monitor waits for the next one
            group.start_soon(converse, session, "hello", "got hello")
            group.start_soon(kubelet.start, late)
            assert await kubelet.output(reader, "echo at once") == "at once"
        assert await ready_again(cri) < 5
        ended = await kubelet.exited(scene.during)
        reason = "Error" if KERNEL_TELLS else "MonitorLost"
        assert (ended.exit_code, ended.reason) == (told(4), reason), "nobody waited for it but the kernel"
        await scene.check(cri)


async def test_server_and_monitor_are_killed(own_node: DaemonNode, handler: str) -> None:
    scene = Scene(own_node, handler)
    async with connect(own_node.socket) as cri:
        await scene.set(cri)
    await run_sync(own_node.kill)
    await own_node.kill_monitor()
    (scene.flags / "during").touch()
    await anyio.sleep(0.2)
    await own_node.restart()
    async with connect(own_node.socket) as cri:
        kubelet = Kubelet(own_node, cri, handler)
        lost = await kubelet.exited(scene.during)
        assert (lost.exit_code, lost.reason) == (255, "MonitorLost"), "nobody was there to see it"
        await scene.check(cri)


async def test_the_monitor_is_killed_again_and_again_while_containers_start(own_node: DaemonNode, handler: str) -> None:
    """What is told as not started does not run, and what runs is told so."""
    word = mark(6001)
    async with connect(own_node.socket) as cri:
        kubelet = Kubelet(own_node, cri, handler)
        pod = await kubelet.run()
        containers = [await kubelet.create(pod, ["sleep", word], name=f"c{n}") for n in range(6)]
        for n, container in enumerate(containers):
            async with anyio.create_task_group() as group:
                group.start_soon(_start_or_fail, kubelet, container)
                await anyio.sleep(0.01 * n)
                await own_node.kill_monitor()
            await ready_again(cri)
        with anyio.fail_after(30):  # what a dead monitor was launching is ended when the next one is there
            while True:
                states = [(await kubelet.status(container)).state for container in containers]
                if len(processes(word)) == sum(state is RUNNING for state in states):
                    break
                await anyio.sleep(0.05)
        await kubelet.clean()
        assert processes(word) == []
        tops = cgroups.layout().directories(pod_cgroup(pod_cgroups.top(own_node.name), pod_cgroups.DRIVER))
        assert not [str(path) for top in tops for path in top.glob("**/cri-bridge-*/")], "no container's cgroup is left"


async def _start_or_fail(kubelet: Kubelet, container: str) -> None:
    try:
        await kubelet.start(container)
    except CriError as exc:
        if exc.code is not Status.UNAVAILABLE:
            raise
