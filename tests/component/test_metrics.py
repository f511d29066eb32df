"""The metrics RPCs over the real core and a real socket: who is told, what is described, streams in bounded messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient
from bridge.core.metric_groups import Group
from bridge.core.services import Services
from tests.component.conftest import World, container, pod
from tests.component.test_events import served
from tests.component.test_stats import own_cgroup

pytestmark = pytest.mark.root


async def started(core: Services, world: World, sandbox: str, name: str) -> str:
    """A container that shares this process's cgroup."""
    ident = (await core.containers.create(sandbox, container(name))).id
    world.backend.containers[ident].cgroup = own_cgroup()
    await core.containers.start(ident)
    return ident


async def listed(cri: CriClient) -> list[pb.PodSandboxMetrics]:
    return (await cri.runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())).pod_metrics


async def described(cri: CriClient) -> dict[str, list[str]]:
    answer = await cri.runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())
    found = {each.name: each.label_keys for each in answer.descriptors}
    assert len(found) == len(answer.descriptors)
    assert all(each.help for each in answer.descriptors)
    return found


def series(metrics: list[pb.Metric]) -> dict[tuple[str, ...], pb.Metric]:
    found = {(each.name, *each.label_values): each for each in metrics}
    assert len(found) == len(metrics), "no series comes twice"
    return found


async def test_lists_and_streams(core: Services, world: World, tmp_path: Path) -> None:
    first, second = await core.sandboxes.run(pod("one"), ""), await core.sandboxes.run(pod("two"), "")
    running = await started(core, world, first.id, "app")
    await core.containers.create(first.id, container("created"))
    await core.sandboxes.stop(second.id)
    async with served(core, tmp_path / "sock") as (_, cri):
        labels = await described(cri)
        (told,) = await listed(cri)
        assert told.pod_sandbox_id == first.id
        assert [each.container_id for each in told.container_metrics] == [running]
        metrics = series(told.container_metrics[0].metrics)
        base = ("one", "default", "app", running, "busybox")
        assert ("container_memory_working_set_bytes", *base) in metrics
        assert ("container_start_time_seconds", *base) in metrics
        assert ("container_file_descriptors", *base) in metrics
        for (name, *values), metric in metrics.items():
            assert len(values) == len(labels[name]), name
            assert metric.timestamp > 0
        streamed = [
            each
            async for message in cri.runtime.stream_pod_sandbox_metrics(pb.StreamPodSandboxMetricsRequest())
            for each in message.pod_sandbox_metrics
        ]
        assert [(each.pod_sandbox_id, len(each.container_metrics[0].metrics)) for each in streamed] == [(first.id, len(metrics))]


async def test_details_are_read_once_somebody_asks_for_metrics(core: Services, world: World, tmp_path: Path) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    ident = await started(core, world, sandbox.id, "app")
    await core.stats.containers()
    (usage,) = await core.stats.containers()
    assert (usage.details, usage.processes) == (None, None)
    async with served(core, tmp_path / "sock") as (_, cri):
        assert [each.pod_sandbox_id for each in await listed(cri)] == [sandbox.id]
    (usage,) = await core.stats.containers()
    assert usage.id == ident
    assert usage.processes is not None
    assert usage.processes.processes >= 1


async def test_only_chosen_groups(world: World, tmp_path: Path) -> None:
    world.settings["metric_groups"] = (Group.CPU,)
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        await started(core, world, sandbox.id, "app")
        async with served(core, tmp_path / "sock") as (_, cri):
            names = set(await described(cri))
            assert names == {"container_last_seen"} | {each for each in names if each.startswith("container_cpu_")}
            assert "container_cpu_usage_seconds_total" in names
            (told,) = await listed(cri)
            assert {each.name for each in told.container_metrics[0].metrics} <= names
        await core.sandboxes.stop(sandbox.id)
        await core.sandboxes.remove(sandbox.id)


async def test_a_node_without_pods(core: Services, tmp_path: Path) -> None:
    async with served(core, tmp_path / "sock") as (_, cri):
        assert await listed(cri) == []
        assert [each async for each in cri.runtime.stream_pod_sandbox_metrics(pb.StreamPodSandboxMetricsRequest())] == []
