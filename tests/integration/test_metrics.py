"""The metrics RPCs against what the kernel says, on runc and crun: one pod that works."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from tests.integration.daemon_fixtures import handler, kubelet, warm
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node
from tests.integration.stats_truth import HELD, LIMIT, MIB, WRITTEN, Kernel, by_own_labels, eventually, worked

__all__ = ["handler", "kubelet"]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server whose numbers are young."""
    with daemon_node(stats=["layer_period = 1.0", "period = 1.0"]) as made:
        anyio.run(warm, made)
        yield made


async def listed(kubelet: Kubelet, pod: str) -> pb.PodSandboxMetrics:
    answer = await kubelet.cri.runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
    (found,) = (each for each in answer.pod_metrics if each.pod_sandbox_id == pod)
    return found


async def test_a_pod_that_works(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    descriptors = (await runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())).descriptors
    described = {each.name: each.label_keys for each in descriptors}
    assert described["container_memory_rss"] == ["pod", "namespace", "container", "id", "image"]
    pod = await kubelet.run()
    container, used_ns = await worked(kubelet, pod)
    pid = (await kubelet.info(container))["pid"]
    kernel, status = Kernel(pid), (await runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))).status
    assert status is not None
    assert status.metadata is not None
    named = [status.metadata.name, status.metadata.namespace]
    held: dict[str, int] = {}

    async def measured() -> bool:
        """What is listed may be of a second ago, and so may the layer: wait for those of a shell that has worked and its sleep."""
        (of_container,) = (await listed(kubelet, pod)).container_metrics
        image = of_container.metrics[0].label_values[4]
        assert image
        held.clear()
        held.update(by_own_labels(of_container.metrics, described, [*named, "app", container, image]))
        written = [value for key, value in held.items() if key.startswith("fs_usage_bytes")]
        return held["processes"] == 2 and min(written, default=0) >= WRITTEN

    await eventually(measured, 60.0)
    assert used_ns // 2 <= (held["cpu_usage_seconds_total:total"] + 1) * 10**9
    assert held["cpu_usage_seconds_total:total"] <= kernel.cpu_ns // 10**9
    assert abs(held["cpu_user_seconds_total"] + held["cpu_system_seconds_total"] - held["cpu_usage_seconds_total:total"]) <= 2
    memory = kernel.memory
    for name, key in (("usage", "memory_usage_bytes"), ("working_set", "memory_working_set_bytes"), ("rss", "memory_rss")):
        assert abs(held[key] - memory[name]) <= 8 * MIB, name
    assert held["memory_max_usage_bytes"] >= held["memory_rss"] >= HELD
    assert 0 < held["memory_failures_total:pgfault:hierarchy"] <= memory["faults"]
    assert held["spec_memory_limit_bytes"] == LIMIT
    assert held["oom_events_total"] == 0
    assert held["threads"] == held["processes"]
    assert held["file_descriptors"] >= len(os.listdir(f"/proc/{pid}/fd")) >= 3
    assert (held["sockets"], held["ulimits_soft:max_open_files"] > 0) == (0, True)
    assert 0 < held["start_time_seconds"] <= held["last_seen"]
    told = await listed(kubelet, pod)
    of_pod = by_own_labels(told.metrics, described, [*named, "", pod, ""])
    now = kernel.interfaces
    assert {key.rpartition(":")[2] for key in of_pod} == set(now) - {"lo"}
    assert 0 <= of_pod["network_receive_bytes_total:eth0"] <= now["eth0"].rx_bytes
    assert 0 < of_pod["network_transmit_packets_total:eth0"] <= now["eth0"].tx_packets
    streamed = [
        each.pod_sandbox_id
        async for message in runtime.stream_pod_sandbox_metrics(pb.StreamPodSandboxMetricsRequest())
        for each in message.pod_sandbox_metrics
    ]
    assert streamed == [pod]
    await kubelet.stop_pod(pod)
    assert (await runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())).pod_metrics == []
