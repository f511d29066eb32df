"""Pods in virtual machines, through the whole server: on a stand-in for Kata's shim, and the same on a real Kata where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import mounts
from bridge.testing.conformance.remote import command, forward
from tests.conftest import LeakAudit
from tests.integration.daemon_fixtures import warm
from tests.integration.daemon_node import Kubelet
from tests.integration.kata_node import REAL, KataNode, kata_node, kill

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]
EXITED, RUNNING = pb.ContainerState.CONTAINER_EXITED, pb.ContainerState.CONTAINER_RUNNING
READY, NOT_READY = pb.PodSandboxState.SANDBOX_READY, pb.PodSandboxState.SANDBOX_NOTREADY
_PRESENT = pytest.mark.skipif(REAL is None, reason="no containerd-shim-kata-v2 in PATH")


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=_PRESENT)])
def kata(request: pytest.FixtureRequest) -> Iterator[KataNode]:
    with kata_node(real=request.param == "real") as made:
        anyio.run(warm, made.node)
        yield made


@pytest.fixture
async def kubelet(kata: KataNode, leak_audit: LeakAudit) -> AsyncIterator[Kubelet]:
    """A connected kubelet; its pods are removed, and then nothing of them may be left."""
    kata.fault()
    leak_audit.watch(kata.node.scope())
    async with connect(kata.node.socket) as cri:
        made = Kubelet(kata.node, cri, kata.handler)
        yield made
        kata.fault()
        await made.clean()


@pytest.fixture
def faulty(kata: KataNode) -> KataNode:
    if kata.real:
        pytest.skip("a real Kata can't be asked to go wrong")
    return kata


async def test_life_of_a_pod(kata: KataNode, kubelet: Kubelet) -> None:
    config = kubelet.pod_config(
        annotations={"io.katacontainers.config.hypervisor.default_vcpus": "1", "io.katacontainers.config.hypervisor.path": "/bin/false"},
        dns_config=pb.DnsConfig(servers=["10.20.30.40"]),
    )
    assert config.linux is not None
    config.linux.sysctls = {"net.core.somaxconn": "777"}
    config.linux.resources = pb.LinuxContainerResources(cpu_period=100000, cpu_quota=50000, cpu_shares=512, memory_limit_in_bytes=64 << 20)
    config.linux.overhead = pb.LinuxContainerResources(memory_limit_in_bytes=160 << 20)
    pod = await kubelet.run(config=config)
    spec = kata.bundle(pod)
    annotations = spec["annotations"]
    assert annotations["io.kubernetes.cri.sandbox-memory"] == str(64 << 20), "the overhead is the empty machine's"
    assert annotations["io.kubernetes.cri.sandbox-cpu-quota"] == "50000"
    assert annotations["io.katacontainers.config.hypervisor.default_vcpus"] == "1"
    assert "io.katacontainers.config.hypervisor.path" not in annotations
    assert "doesn't allow the annotations io.katacontainers.config.hypervisor.path" in kata.node.server_log
    script = "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.2; done"
    container = await kubelet.started(pod, script)
    lines = await kubelet.log(pod, until=lambda lines: len(lines) > 1)
    assert sorted(lines) == ["stderr F err", "stdout F out"]
    assert await kubelet.output(container, "hostname") == config.metadata.name  # type: ignore[union-attr]
    assert await kubelet.output(container, "cat /etc/resolv.conf") == "nameserver 10.20.30.40"
    assert await kubelet.output(container, "cat /proc/sys/net/core/somaxconn") == "777"
    answer = await kubelet.exec(container, "echo e >&2; exit 7", timeout=60)
    assert (answer.exit_code, answer.stderr) == (7, b"e\n")
    stats = await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=container))
    assert stats.stats is not None
    assert stats.stats.cpu is not None
    assert stats.stats.cpu.usage_core_nano_seconds is not None
    assert stats.stats.cpu.usage_core_nano_seconds.value > 0
    await kubelet.stop(container, timeout=60)
    status = await kubelet.exited(container, timeout=20 * kata.slowness)
    assert status.exit_code == 3
    assert "stdout F bye" in await kubelet.log(pod, until=lambda lines: len(lines) > 2)
    again = await kubelet.started(pod, "exit 5", name="again")
    assert (await kubelet.exited(again, timeout=20 * kata.slowness)).exit_code == 5
    assert (await kubelet.pod_status(pod)).state is READY
    await kubelet.stop_pod(pod)
    assert (await kubelet.pod_status(pod)).state is NOT_READY
    assert kata.processes(pod) == {}
    await kubelet.remove_pod(pod)
    assert kata.machine_state(pod) == []


async def test_streams_into_the_guest(kata: KataNode, kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "exec cat", stdin=True, tty=False)
    patience = 20 * kata.slowness
    script = "tty; while read word; do stty size; [ $word = end ] && exit 9; done"
    asked = pb.ExecRequest(container_id=container, cmd=["sh", "-c", script], tty=True, stdin=True, stdout=True)
    async with command((await kubelet.cri.runtime.exec(asked)).url, patience=patience) as session:
        await session.until(b"/dev/")
        await session.resize(123, 45)
        with anyio.fail_after(patience):
            while b"45 123" not in session.stdout:
                await session.send(b"size\n")
                await anyio.sleep(0.2)
        await session.send(b"end\n")
        assert await session.exit_code() == 9
    asked = pb.ExecRequest(container_id=container, cmd=["cat"], stdin=True, stdout=True)
    async with command((await kubelet.cri.runtime.exec(asked)).url, patience=patience) as session:
        await session.send(b"through\n")
        await session.until(b"through")
        await session.close_stdin()
        assert await session.exit_code() == 0
    attach = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    async with command((await kubelet.cri.runtime.attach(attach)).url, patience=patience) as session:
        await session.send(b"attached\n")
        await session.until(b"attached")
    listener = await kubelet.started(pod, "mkdir /w; echo listening > /w/word; exec httpd -f -p 8080 -h /w", name="listener")
    assert (await kubelet.status(listener)).state is RUNNING
    with anyio.fail_after(patience):
        while True:
            url = (await kubelet.cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[8080]))).url
            async with forward(url, patience=patience) as session:
                with contextlib.suppress(AssertionError):  # it may not listen yet
                    await session.send(b"GET /word HTTP/1.0\r\n\r\n")
                    await session.until(b"listening\n")
                    break
            await anyio.sleep(0.2)


async def test_memory_that_runs_out_in_the_guest_is_told(kata: KataNode, kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "exec tail /dev/zero", memory=20 << 20)
    status = await kubelet.exited(container, timeout=60 * kata.slowness)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


async def test_a_dead_shim_ends_its_pod_and_nothing_is_left(kata: KataNode, kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    kill(kata.processes(pod)["containerd"])
    status = await kubelet.exited(container, timeout=60 * kata.slowness)
    assert status.exit_code == 137
    with anyio.fail_after(60 * kata.slowness):
        while (await kubelet.pod_status(pod)).state is READY:
            await anyio.sleep(0.05)
    await kubelet.stop_pod(pod)
    await kubelet.remove_pod(pod)
    await kata.gone(pod)


async def test_a_dead_machine_ends_its_pod_and_nothing_is_left(kata: KataNode, kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    kill(kata.processes(pod)["qemu"])
    status = await kubelet.exited(container, timeout=60 * kata.slowness)
    assert status.exit_code in (137, 255)
    await kubelet.stop_pod(pod)
    await kubelet.remove_pod(pod)
    await kata.gone(pod)


@pytest.fixture
def own(kata: KataNode) -> Iterator[KataNode]:
    """A server of the test's own, to be killed."""
    with kata_node(real=kata.real) as made:
        yield made


async def test_machines_outlive_the_server(own: KataNode) -> None:
    async with connect(own.node.socket) as cri:
        await _outlives(own, Kubelet(own.node, cri, own.handler))


async def _outlives(kata: KataNode, kubelet: Kubelet) -> None:
    script = "n=0; trap 'exit 6' TERM; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
    pod = await kubelet.run()
    container = await kubelet.started(pod, script)
    before = kata.processes(pod)
    seen = len(await kubelet.log(pod))
    kata.node.kill()
    await kata.node.restart()
    async with connect(kata.node.socket) as cri:
        after = Kubelet(kata.node, cri, kata.handler)
        after.configs = kubelet.configs
        assert kata.processes(pod) == before
        lines = await after.log(pod, until=lambda lines: len(lines) > seen + 5)
        assert lines == [f"stdout F {number}" for number in range(1, len(lines) + 1)], "no line is lost or told twice"
        assert await after.output(container, "echo still") == "still"
        await after.stop(container, timeout=60)
        assert (await after.exited(container, timeout=20 * kata.slowness)).exit_code == 6
        await after.clean()
    await kata.gone(pod)


async def refused(kubelet: Kubelet, **options: object) -> CriError:
    with pytest.raises(CriError) as caught:
        await kubelet.run(**options)  # type: ignore[arg-type]
    assert (await kubelet.cri.runtime.list_pod_sandbox()).items == []
    return caught.value


async def test_what_a_machine_can_not_be_is_refused(kata: KataNode, kubelet: Kubelet, tmp_path: Path) -> None:
    options = pb.NamespaceOption(network=pb.NamespaceMode.NODE, pid=pb.NamespaceMode.CONTAINER)
    error = await refused(kubelet, options=options)
    assert (error.code, "namespace_options.network: this handler can't use the node's" in error.message) == (Status.UNIMPLEMENTED, True)
    strict = Kubelet(kata.node, kubelet.cri, kata.hasty)
    error = await refused(strict, config=kubelet.pod_config(annotations={"io.katacontainers.config.hypervisor.path": "/bin/sh"}))
    assert error.code is Status.PERMISSION_DENIED
    assert "config.annotations['io.katacontainers.config.hypervisor.path']: not in runtime.handlers.hasty" in error.message


async def test_a_machine_that_hangs_while_it_boots(faulty: KataNode, kubelet: Kubelet) -> None:
    faulty.fault(boot="hangs")
    error = await refused(Kubelet(faulty.node, kubelet.cri, faulty.hasty))
    assert error.code is Status.DEADLINE_EXCEEDED
    assert "within 3 s; the shim's last words: " in error.message
    await faulty.gone(faulty.last_machine)


async def test_a_machine_that_dies_while_it_boots(faulty: KataNode, kubelet: Kubelet) -> None:
    faulty.fault(boot="dies")
    error = await refused(kubelet)
    assert error.code is Status.INTERNAL
    assert "failed to launch qemu-system-fake" in error.message
    await faulty.gone(faulty.last_machine)


async def test_a_guest_that_hangs_does_not_keep_its_pod(faulty: KataNode, kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "trap '' TERM; while :; do sleep 1; done")
    faulty.fault(agent="mute")
    with anyio.fail_after(60):
        await kubelet.stop_pod(pod)
        assert (await kubelet.status(container)).state is EXITED
        await kubelet.remove_pod(pod)
    await faulty.gone(pod)


async def test_the_pods_cgroup_has_room_for_its_machine(kata: KataNode, kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.resources = pb.LinuxContainerResources(memory_limit_in_bytes=512 << 20)
    config.linux.overhead = pb.LinuxContainerResources(memory_limit_in_bytes=160 << 20)
    pod = await kubelet.run(config=config)
    info = await kubelet.pod_info(pod)
    assert info
    for mount in mounts.read_mountinfo():
        if mount.target.endswith(f"sandboxes/{pod}"):
            assert any(tag.startswith("shared:") for tag in mount.propagation)
