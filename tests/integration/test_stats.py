"""The statistics RPCs against what the kernel says, on runc and crun; what a list costs."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.host import cgroups
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet
from tests.integration.limit_files import Limits

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

MIB = 1 << 20


async def stats(kubelet: Kubelet, container: str) -> pb.ContainerStats:
    answer = await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=container))
    assert answer.stats is not None
    return answer.stats


def value(number: pb.UInt64Value | None) -> int:
    assert number is not None
    return number.value


async def test_a_container_that_works(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    command = "for file in /held /dev/shm/held; do dd if=/dev/zero of=$file bs=1M count=10 2>/dev/null; done; echo go; while :; do :; done"
    container = await kubelet.started(pod, command, memory=64 * MIB)
    await kubelet.log(pod, until=lambda lines: bool(lines))
    first = await stats(kubelet, container)
    assert first.attributes is not None
    assert first.attributes.id == container
    assert first.attributes.metadata == pb.ContainerMetadata(name="app")
    assert first.cpu is not None
    assert first.memory is not None
    assert abs(first.cpu.timestamp - time.time_ns()) < 5e9
    used, limit = value(first.memory.usage_bytes), value(first.memory.working_set_bytes) + value(first.memory.available_bytes)
    assert 10 * MIB < value(first.memory.working_set_bytes) <= used <= limit == 64 * MIB
    assert value(first.memory.page_faults) > 0
    assert value(first.memory.rss_bytes) > 0
    await anyio.sleep(1.1)  # a rate covers a second at least
    second = await stats(kubelet, container)
    assert second.cpu is not None
    spent = value(second.cpu.usage_core_nano_seconds) - value(first.cpu.usage_core_nano_seconds)
    passed = second.cpu.timestamp - first.cpu.timestamp
    assert spent > 0
    assert value(second.cpu.usage_nano_cores) == pytest.approx(spent * 1e9 / passed, rel=0.01)
    assert second.swap is None or value(second.swap.swap_usage_bytes) >= 0
    kernel = Limits((await kubelet.info(container))["pid"])
    name = ("cpu", "cpu.stat") if cgroups.is_v2() else ("cpuacct", "cpuacct.usage")
    told = int(kernel.text(*name).split()[1 if cgroups.is_v2() else 0]) * (1000 if cgroups.is_v2() else 1)
    assert value(second.cpu.usage_core_nano_seconds) <= told < value(second.cpu.usage_core_nano_seconds) + 5e9
    pressure = Path(kernel.directory("")) / "cpu.pressure"
    assert (second.cpu.psi is not None) == pressure.exists()


async def test_a_pod_with_its_containers_and_its_network(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    one, two = await kubelet.started(pod, name="one"), await kubelet.started(pod, name="two")
    address = (await kubelet.pod_status(pod)).network
    assert address is not None
    before = await _pod(kubelet, pod)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(10):
            sender.sendto(b"x" * 1000, (address.ip, 9))
    after = await _pod(kubelet, pod)
    assert [each.attributes.id for each in after.containers if each.attributes] == [one, two]
    assert after.network is not None
    assert before.network is not None
    assert after.network.default_interface is not None
    assert before.network.default_interface is not None
    assert after.network.default_interface.name == "eth0"
    assert value(after.network.default_interface.rx_bytes) >= value(before.network.default_interface.rx_bytes) + 10_000
    assert value(after.network.default_interface.tx_bytes) > value(before.network.default_interface.tx_bytes)  # nobody listens, it says
    assert after.process is not None
    assert value(after.process.process_count) >= 2
    assert after.memory is not None
    assert value(after.memory.usage_bytes) > 0
    await kubelet.stop_pod(pod)
    stopped = await _pod(kubelet, pod)
    assert (stopped.network, [each.cpu for each in stopped.containers]) == (None, [None, None])


async def _pod(kubelet: Kubelet, pod: str) -> pb.LinuxPodSandboxStats:
    answer = await kubelet.cri.runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))
    assert answer.stats is not None
    assert answer.stats.linux is not None
    return answer.stats.linux


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


async def test_a_writable_layer_is_measured_in_the_background(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    layer = (await stats(kubelet, container)).writable_layer
    assert layer is not None
    assert layer.fs_id is not None
    images = await kubelet.cri.image.image_fs_info(pb.ImageFsInfoRequest())
    known = [each.fs_id for each in images.container_filesystems]
    assert layer.fs_id in known
    assert value(layer.inodes_used) >= 1
