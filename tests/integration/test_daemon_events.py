"""GetContainerEvents of the real server: what a kubelet with evented PLEG is told of a pod's life."""

from __future__ import annotations

import time

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import connect
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet
from tests.integration.event_watch import CREATED, DELETED, STARTED, STOPPED, Watch, snapshot

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root


async def test_events_of_a_pods_life(kubelet: Kubelet) -> None:
    watch = Watch()
    async with connect(kubelet.node.socket) as cri, anyio.create_task_group() as group:
        group.start_soon(watch.run, cri)
        await watch.heard(kubelet)
        pod = await kubelet.run()
        assert await watch.until(pod, STARTED) == [CREATED, STARTED]
        steady = await kubelet.started(pod, name="steady", memory=64 << 20)
        brief = [await kubelet.started(pod, "exit 7", f"brief-{number}") for number in range(5)]
        for ident in brief:
            assert await watch.until(ident, STOPPED) == [CREATED, STARTED, STOPPED]
        ended = watch.of(brief[-1])[-1]
        assert snapshot(ended)[brief[-1]] == await kubelet.status(brief[-1])
        assert snapshot(ended)[brief[-1]].exit_code == 7
        assert snapshot(ended)[steady].state is pb.ContainerState.CONTAINER_RUNNING
        assert ended.pod_sandbox_status == await kubelet.pod_status(pod)
        change = pb.LinuxContainerResources(memory_limit_in_bytes=128 << 20)
        await kubelet.cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=steady, linux=change))
        told = await kubelet.cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
        assert told.timestamp > ended.created_at
        ahead = int((kubelet.node.root / "run" / "event-times").read_text().split()[1])  # what the next server's times begin after
        assert abs(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ahead - told.timestamp) < 60 * 10**9
        stats = (await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=steady))).stats
        assert stats is not None
        assert stats.memory is not None
        assert stats.memory.available_bytes is not None
        assert 64 << 20 < stats.memory.available_bytes.value <= 128 << 20
        await kubelet.remove(brief[0])
        assert (await watch.until(brief[0], DELETED))[-1] is DELETED
        left = snapshot(watch.of(brief[0])[-1])
        assert left.keys() == {steady, *brief[1:]}
        for limits in (left[steady].resources, next(one.resources for one in told.containers_statuses if one.id == steady)):
            assert limits is not None
            assert limits.linux is not None
            assert limits.linux.memory_limit_in_bytes == 128 << 20
        await kubelet.stop_pod(pod)
        await kubelet.remove_pod(pod)
        assert await watch.until(pod, DELETED) == [CREATED, STARTED, STOPPED, DELETED]
        group.cancel_scope.cancel()
    gone = watch.of(pod)[-1]
    assert gone.pod_sandbox_status is not None
    assert (gone.pod_sandbox_status.id, gone.containers_statuses) == (pod, [])
    assert [event.container_event_type for event in watch.of(steady)] == [CREATED, STARTED, STOPPED, DELETED]
    times = [event.created_at for event in watch.events]
    assert times == sorted(set(times))
