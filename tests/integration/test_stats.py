"""The statistics RPCs against what the kernel, du and the workload say, on runc and crun (gVisor and shims have theirs in their suites)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.daemon_fixtures import handler, kubelet, warm
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node, namespaces
from tests.integration.limit_files import Limits
from tests.integration.stats_truth import (
    agrees_with_the_kernel,
    agrees_with_the_workload,
    container_stats,
    eventually,
    layer_is_what_du_says,
    network_is_what_the_pod_sees,
    pod_agrees_with_the_kernel,
    pod_stats,
    pods_limit_follows,
    processes_below,
    value,
    worked,
)

__all__ = ["handler", "kubelet"]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server that measures writable layers often."""
    with daemon_node(stats=["layer_period = 1.0"]) as made:
        anyio.run(warm, made)
        yield made


async def test_a_container_that_works(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    container, used = await worked(kubelet, pod)
    pid = (await kubelet.info(container))["pid"]
    await agrees_with_the_kernel(kubelet, container, pid)
    await agrees_with_the_workload(kubelet, container, used)
    await pod_agrees_with_the_kernel(kubelet, pod, pid)
    told = await container_stats(kubelet, container)
    assert told.attributes is not None
    assert (told.attributes.id, told.attributes.metadata) == (container, pb.ContainerMetadata(name="app"))
    assert told.cpu is not None
    assert abs(told.cpu.timestamp - time.time_ns()) < 5e9
    kernel = Limits(pid)
    for kind, found in (("cpu", told.cpu.psi), ("memory", told.memory and told.memory.psi), ("io", told.io and told.io.psi)):
        assert (found is not None) == (kernel.directory("") / f"{kind}.pressure").exists(), kind
    assert (told.swap is None) == (" swap " not in f" {kernel.text('memory', 'memory.stat')} ".replace("\n", " "))
    await layer_is_what_du_says(kubelet, node, container)
    directory = kernel.directory("pids").parent
    told_pod = await pod_stats(kubelet, pod)
    assert told_pod.process is not None
    assert value(told_pod.process.process_count) == processes_below(directory) >= 2
    assert told_pod.memory is not None
    assert told_pod.memory.available_bytes is None, "nobody limits the pod"
    assert value(told_pod.memory.usage_bytes) > 0
    assert told_pod.cpu is not None
    assert value(told_pod.cpu.usage_core_nano_seconds) >= value(told.cpu.usage_core_nano_seconds)
    await pods_limit_follows(kubelet, pod)


async def test_a_rate_is_that_of_a_quota(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    resources = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=20_000)
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces())
    linux = pb.LinuxContainerConfig(resources=resources, security_context=security)
    container = await kubelet.started(pod, "while :; do :; done", linux=linux)
    rates: list[int] = []

    async def some() -> bool:
        cpu = (await container_stats(kubelet, container)).cpu
        assert cpu is not None
        if cpu.usage_nano_cores is not None:
            rates.append(cpu.usage_nano_cores.value)
        return len(set(rates)) >= 2

    await eventually(some)
    assert all(0 < each < 400_000_000 for each in rates), rates  # with the start, and periods that a window cuts


async def test_a_pod_and_its_network(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    one, two = await kubelet.started(pod, name="one"), await kubelet.started(pod, name="two")
    address = (await kubelet.pod_status(pod)).network
    assert address is not None
    before = await pod_stats(kubelet, pod)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(10):
            sender.sendto(b"x" * 1000, (address.ip, 9))
    after = await pod_stats(kubelet, pod)
    assert [each.attributes.id for each in after.containers if each.attributes] == [one, two]
    assert after.network is not None
    assert before.network is not None
    assert after.network.default_interface is not None
    assert before.network.default_interface is not None
    assert value(after.network.default_interface.rx_bytes) >= value(before.network.default_interface.rx_bytes) + 10_000
    assert value(after.network.default_interface.tx_bytes) > value(before.network.default_interface.tx_bytes)  # nobody listens, it says
    await network_is_what_the_pod_sees(kubelet, pod, (await kubelet.info(one))["pid"])
    await kubelet.stop_pod(pod)
    stopped = await pod_stats(kubelet, pod)
    assert (stopped.cpu, stopped.memory, stopped.network, stopped.process) == (None, None, None, None)
    assert [each.cpu for each in stopped.containers] == [None, None]


async def test_lists_streams_and_absent_ones(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    pod = await kubelet.run()
    running = await kubelet.started(pod, name="running", labels={"app": "x"})
    created = await kubelet.create(pod, name="created")
    ended = await kubelet.started(pod, "true", name="ended")
    await kubelet.exited(ended)
    found = {
        each.attributes.id: each for each in (await runtime.list_container_stats(pb.ListContainerStatsRequest())).stats if each.attributes
    }
    assert set(found) == {running, created, ended}
    assert [found[each].cpu is not None for each in (running, created, ended)] == [True, False, False]
    assert all(each.writable_layer is not None for each in found.values())
    for condition, expected in (
        (pb.ContainerStatsFilter(id=running), [running]),
        (pb.ContainerStatsFilter(label_selector={"app": "x"}), [running]),
        (pb.ContainerStatsFilter(pod_sandbox_id="absent"), []),
        (pb.ContainerStatsFilter(id="absent"), []),
    ):
        listed = (await runtime.list_container_stats(pb.ListContainerStatsRequest(filter=condition))).stats
        assert [each.attributes.id for each in listed if each.attributes] == expected
        streamed = [message async for message in runtime.stream_container_stats(pb.StreamContainerStatsRequest(filter=condition))]
        assert [each.attributes.id for message in streamed for each in message.container_stats if each.attributes] == expected
    pods = (await runtime.list_pod_sandbox_stats(pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(id=pod)))).stats
    assert [each.attributes.id for each in pods if each.attributes] == [pod]
    messages = [message async for message in runtime.stream_pod_sandbox_stats(pb.StreamPodSandboxStatsRequest())]
    assert [each.attributes.id for message in messages for each in message.pod_sandbox_stats if each.attributes] == [pod]
    for call in (
        runtime.container_stats(pb.ContainerStatsRequest(container_id="absent")),
        runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id="absent")),
    ):
        with pytest.raises(CriError) as caught:
            await call
        assert caught.value.code.name == "NOT_FOUND"
    told = found[running].cpu
    assert told is not None

    async def another_look() -> bool:
        """Who asks for lists again and again gets newer ones: crictl tells a rate from two lists a second apart."""
        now = (await runtime.list_container_stats(pb.ListContainerStatsRequest())).stats
        return any(each.cpu is not None and each.cpu.timestamp > told.timestamp for each in now)

    await eventually(another_look, 20.0)
