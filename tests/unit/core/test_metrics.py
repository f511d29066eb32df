"""Metrics out of recorded trees of cgroup v1 and v2: every name, its labels, its value; nothing that is not known; what peers tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from bridge.core.entities import Container, Sandbox, SandboxState
from bridge.core.metric_groups import CHOICES, Group
from bridge.core.metrics import ContainerMetrics, MetricsService, PodMetrics
from bridge.core.metrics_table import BASE_LABELS
from bridge.core.model import Resources
from bridge.core.stats import ContainerUsage, PodUsage, StatsService
from bridge.host import cgroup_details
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.host.cgroup_reader import CgroupReader
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.net_stats import Interface, NetworkStats
from bridge.host.process_counts import ProcessCounts
from bridge.ports.images import FsUsage
from tests.unit.api.test_convert import CONTAINER, SANDBOX
from tests.unit.core import metric_peers
from tests.unit.host import test_cgroup_details, test_cgroup_stats

SECOND = 1_000_000_000
NETWORK = NetworkStats(8, (Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8), Interface("net1", 10, 20, 30, 40, 50, 60, 70, 80)))
LIMITS = Resources(cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit_in_bytes=1 << 26, memory_swap_limit_in_bytes=1 << 27)
SHARED = {
    "container_last_seen": 1,
    "container_cpu_cfs_periods_total": 12,
    "container_cpu_cfs_throttled_periods_total": 5,
    "container_memory_cache": 4096,
    "container_memory_rss": 8192,
    "container_memory_kernel_usage": 900,
    "container_memory_mapped_file": 512,
    "container_memory_swap": 2048,
    "container_memory_failcnt": 3,
    "container_memory_usage_bytes": 10485760,
    "container_memory_max_usage_bytes": 8000,
    "container_memory_working_set_bytes": 9437184,
    "container_memory_total_active_file_bytes": 128,
    "container_memory_total_inactive_file_bytes": 1048576,
    'container_memory_failures_total{"pgfault","hierarchy"}': 70,
    'container_memory_failures_total{"pgmajfault","hierarchy"}': 3,
    "container_oom_events_total": 1,
    'container_hugetlb_usage_bytes{"2MB"}': 2097152,
    "container_pressure_cpu_stalled_seconds_total": 0,
    "container_pressure_cpu_waiting_seconds_total": 0,
    'container_fs_reads_bytes_total{"8:16"}': 4096,
    'container_fs_reads_total{"8:16"}': 1,
    'container_fs_writes_bytes_total{"8:16"}': 8192,
    'container_fs_writes_total{"8:16"}': 2,
    'container_blkio_device_usage_total{"8:16","8","16","Read"}': 4096,
    'container_blkio_device_usage_total{"8:16","8","16","Write"}': 8192,
    "container_processes": 4,
    "container_file_descriptors": 20,
    "container_sockets": 2,
    "container_threads": 5,
    'container_ulimits_soft{"max_open_files"}': 1024,
    "container_spec_cpu_period": 100_000,
    "container_spec_cpu_quota": 50_000,
    "container_spec_cpu_shares": 512,
    "container_spec_memory_limit_bytes": 1 << 26,
    "container_spec_memory_reservation_limit_bytes": 0,
    "container_spec_memory_swap_limit_bytes": 1 << 27,
    "container_start_time_seconds": 77,
}
V1 = SHARED | {
    "container_cpu_user_seconds_total": 3,
    "container_cpu_system_seconds_total": 2,
    'container_cpu_usage_seconds_total{"total"}': 5,
    "container_cpu_cfs_throttled_seconds_total": 7,
    'container_memory_failures_total{"pgfault","container"}': 11,
    'container_memory_failures_total{"pgmajfault","container"}': 2,
    'container_hugetlb_max_usage_bytes{"2MB"}': 4194304,
    "container_threads_max": 100,
}
V2 = SHARED | {
    "container_cpu_user_seconds_total": 3,
    "container_cpu_system_seconds_total": 2,
    'container_cpu_usage_seconds_total{"total"}': 5,
    "container_cpu_cfs_throttled_seconds_total": 7,
    'container_memory_failures_total{"pgfault","container"}': 70,
    'container_memory_failures_total{"pgmajfault","container"}': 3,
    "container_pressure_memory_stalled_seconds_total": 0,
    "container_pressure_memory_waiting_seconds_total": 0,
    "container_pressure_io_stalled_seconds_total": 0,
    "container_pressure_io_waiting_seconds_total": 0,
    'container_blkio_device_usage_total{"8:16","8","16","Discard"}': 0,
    "container_threads_max": 0,
}


class FakeStats:
    """Tells what it was made with."""

    def __init__(self, *pods: PodUsage) -> None:
        self.pods = pods

    async def sandboxes(self, *, detailed: bool) -> Sequence[PodUsage]:
        assert detailed
        return self.pods


def service(*pods: PodUsage, groups: Sequence[Group] = CHOICES) -> MetricsService:
    return MetricsService(cast("StatsService", FakeStats(*pods)), groups)


async def told(*pods: PodUsage, groups: Sequence[Group] = CHOICES) -> list[PodMetrics]:
    return list(await service(*pods, groups=groups).pods())


def by_name(metrics: ContainerMetrics | PodMetrics) -> dict[str, int]:
    """Values by name and own labels; a series that comes twice would make a kubelet refuse all of them."""
    found: dict[str, int] = {}
    for row, value in metrics.values:
        key = row.name + ("{" + ",".join(f'"{each}"' for each in value.labels) + "}" if value.labels else "")
        assert key not in found
        found[key] = value.value
    return found


def tree(root: Path, *, v2: bool) -> CgroupLayout:
    """The recorded trees of statistics and of details in one, with CPU times of seconds."""
    recorded = test_cgroup_details.V2 if v2 else test_cgroup_details.V1
    files = dict(test_cgroup_stats.V2 if v2 else test_cgroup_stats.V1)
    for (controller, name), content in recorded.items():
        key = f"p/{name}" if v2 else f"{controller}/p/{name}"
        known = {line.split()[0] for line in files.get(key, "").splitlines()}  # of what both have, the statistics' stays
        files[key] = files.get(key, "") + "".join(f"{line}\n" for line in content.decode().splitlines() if line.split()[0] not in known)
    files |= (
        {
            "p/cpu.stat": "usage_usec 5900000\nuser_usec 3100000\nsystem_usec 2800000\n"
            "nr_periods 12\nnr_throttled 5\nthrottled_usec 7000000\n"
        }
        if v2
        else {
            "cpuacct/p/cpuacct.usage": "5900000000\n",
            "cpuacct/p/cpuacct.usage_user": "3100000000\n",
            "cpuacct/p/cpuacct.usage_sys": "2800000000\n",
            "cpu/p/cpu.stat": "nr_periods 12\nnr_throttled 5\nthrottled_time 7000000000\n",
            "memory/p/memory.stat": files["memory/p/memory.stat"] + "pgfault 11\npgmajfault 2\n",
        }
    )
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if v2:
        return CgroupLayout({"": CgroupMount(root)})
    names = ("cpu", "cpuacct", "memory", "pids", "hugetlb", "blkio")
    return CgroupLayout({**{name: CgroupMount(root / name) for name in names}, "": CgroupMount(root / "unified")})


@pytest.fixture(autouse=True)
def huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_details, "page_sizes", lambda: ("2MB", "1GB"))


def seen(root: Path, *, v2: bool, **changes: Any) -> ContainerUsage:
    look, details = CgroupReader(on=tree(root, v2=v2)).read("/p", detailed=True, keep_open=False)
    container: Container = dataclasses.replace(CONTAINER, resources=LIMITS, started_at=77 * SECOND)
    usage = ContainerUsage(
        container, dataclasses.replace(look, at_ns=SECOND), None, None, details, ProcessCounts(4, 20, 2, open_files_limit=1024)
    )
    return dataclasses.replace(usage, **changes)


def ready(*containers: ContainerUsage, network: NetworkStats | None = None, state: SandboxState = SandboxState.READY) -> PodUsage:
    sandbox: Sandbox = dataclasses.replace(SANDBOX, state=state)
    return PodUsage(sandbox, containers, network=network)


@pytest.mark.parametrize("v2", [False, True])
async def test_every_value_of_a_recorded_tree(tmp_path: Path, v2: bool) -> None:
    (pod,) = await told(ready(seen(tmp_path, v2=v2)))
    (metrics,) = pod.containers
    assert by_name(metrics) == (V2 if v2 else V1)
    assert {value.at_ns for _, value in metrics.values} == {SECOND}
    assert pod.values == []


async def test_labels_are_those_of_the_pod_and_the_container(tmp_path: Path) -> None:
    (pod,) = await told(ready(seen(tmp_path, v2=True), network=NETWORK))
    meta, config = SANDBOX.config.metadata, CONTAINER.config
    named = dict(zip(BASE_LABELS, pod.containers[0].labels, strict=True))
    image = config.image.user_specified_image or config.image.image
    assert named == {
        "pod": meta.name,
        "namespace": meta.namespace,
        "container": config.metadata.name,
        "id": CONTAINER.id,
        "image": image,
    }
    of_pod = dict(zip(BASE_LABELS, pod.labels, strict=True))
    assert of_pod == {"pod": meta.name, "namespace": meta.namespace, "container": "", "id": SANDBOX.id, "image": ""}
    assert (pod.id, pod.containers[0].id) == (SANDBOX.id, CONTAINER.id)


async def test_every_interface_of_a_pod() -> None:
    (pod,) = await told(ready(network=NETWORK))
    ways = [f"{way}_{what}" for way in ("receive", "transmit") for what in ("bytes", "packets", "errors", "packets_dropped")]
    assert by_name(pod) == {
        f'container_network_{name}_total{{"{interface}"}}': factor * (place + 1)
        for interface, factor in (("eth0", 1), ("net1", 10))
        for place, name in enumerate(ways)
    }
    assert {value.at_ns for _, value in pod.values} == {8}


async def test_the_file_system_and_the_layer(tmp_path: Path) -> None:
    layer = FsUsage(tmp_path, 4096, 2, 9)
    (pod,) = await told(ready(seen(tmp_path / "tree", v2=True, layer=layer)))
    found = {row.name: value for row, value in pod.containers[0].values if row.group is Group.DISK}
    # a file system without inodes of its own, as btrfs, does not tell them
    assert set(found) >= {"container_fs_limit_bytes", "container_fs_usage_bytes"}
    assert (found["container_fs_usage_bytes"].value, found["container_fs_usage_bytes"].at_ns) == (4096, 9)
    assert found["container_fs_limit_bytes"].value > 4096
    assert len({value.labels for value in found.values()}) == 1
    (gone,) = await told(ready(seen(tmp_path / "tree", v2=True, layer=FsUsage(tmp_path / "gone", 4096, 2, 9))))
    assert not [row for row, _ in gone.containers[0].values if row.group is Group.DISK]


async def test_what_is_not_known_is_absent() -> None:
    bare = ContainerUsage(dataclasses.replace(CONTAINER, resources=Resources()), CgroupStats(SECOND))
    (pod,) = await told(ready(bare))
    assert set(by_name(pod.containers[0])) == {
        "container_last_seen",
        "container_spec_memory_limit_bytes",
        "container_spec_memory_reservation_limit_bytes",
        "container_spec_memory_swap_limit_bytes",
        "container_start_time_seconds",
    }


async def test_of_what_does_not_run_nothing_is_told(tmp_path: Path) -> None:
    ended = ContainerUsage(CONTAINER)
    (pod,) = await told(ready(ended), ready(seen(tmp_path, v2=True), network=NETWORK, state=SandboxState.STOPPED))
    assert (pod.values, pod.containers) == ([], [])


@pytest.mark.parametrize("limit", [0, -1, 1 << 63])
@pytest.mark.parametrize("field", ["memory_limit_in_bytes", "memory_swap_limit_in_bytes"])
async def test_no_limit_is_zero(tmp_path: Path, field: str, limit: int) -> None:
    container = dataclasses.replace(CONTAINER, resources=Resources(**{field: limit}))  # type: ignore[arg-type]
    (pod,) = await told(ready(seen(tmp_path, v2=True, container=container)))
    found = by_name(pod.containers[0])
    assert found[f"container_spec_memory_{'swap_' if 'swap' in field else ''}limit_bytes"] == 0
    assert not {"container_spec_cpu_quota", "container_spec_cpu_period", "container_spec_cpu_shares"} & set(found)


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("max", None)])
async def test_memory_that_is_kept(tmp_path: Path, text: str, value: int | None) -> None:
    container = dataclasses.replace(CONTAINER, resources=Resources(unified={"memory.min": text}))
    (pod,) = await told(ready(seen(tmp_path, v2=True, container=container)))
    assert by_name(pod.containers[0]).get("container_spec_memory_reservation_limit_bytes") == value


@pytest.mark.parametrize("v2", [False, True])
async def test_everything_told_is_described_with_its_labels(tmp_path: Path, v2: bool) -> None:
    metrics = service(ready(seen(tmp_path / "tree", v2=v2, layer=FsUsage(tmp_path, 4096, 2, 9)), network=NETWORK))
    described = {row.name: row for row in metrics.descriptors}
    assert len(described) == len(metrics.descriptors)
    (pod,) = await metrics.pods()
    for row, value in [*pod.values, *pod.containers[0].values]:
        assert described[row.name] is row
        assert len(value.labels) == len(row.labels), row.name
        assert 0 <= value.value < 1 << 64
        assert row.name.startswith("container_")
    assert all(row.help.endswith(".") for row in described.values())


@pytest.mark.parametrize("group", CHOICES)
async def test_groups_can_be_chosen(tmp_path: Path, group: Group) -> None:
    usage = ready(seen(tmp_path / "tree", v2=False, layer=FsUsage(tmp_path, 4096, 2, 9)), network=NETWORK)
    for groups in ([group], [each for each in CHOICES if each is not group]):
        metrics = service(usage, groups=groups)
        (pod,) = await metrics.pods()
        expected = {Group.ALWAYS, *groups}
        assert {row.group for row in metrics.descriptors} == expected
        assert {row.group for row, _ in [*pod.values, *pod.containers[0].values]} == expected


async def test_the_last_look_is_always_told(tmp_path: Path) -> None:
    (pod,) = await told(ready(seen(tmp_path, v2=True), network=NETWORK), groups=[])
    assert (pod.values, by_name(pod.containers[0])) == ([], {"container_last_seen": 1})


@pytest.mark.parametrize(("peer", "theirs"), [("CRI-O", metric_peers.CRIO), ("containerd", metric_peers.CONTAINERD)])
def test_names_types_and_labels_are_those_of(peer: str, theirs: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    ours = {row.name: (row.kind.name.lower(), row.labels) for row in service().descriptors}
    assert set(BASE_LABELS) == metric_peers.BASE
    assert set(theirs) <= set(ours)
    assert {name for name, facts in theirs.items() if ours[name] != facts} == set(metric_peers.DIFFERENT[peer])
    assert all(ours[name][0] == theirs[name][0] for name in theirs), "types agree everywhere"


def test_the_peers_have_as_many_as_they_say() -> None:
    assert (len(metric_peers.CRIO), len(metric_peers.CONTAINERD)) == (56, 49)
    assert {row.name for row in service().descriptors} == set(metric_peers.CRIO) | set(metric_peers.CONTAINERD)
    assert len(metric_peers.CRITEST) == 40
    assert set(metric_peers.CRIO) > metric_peers.CRITEST_SPARES


@pytest.mark.parametrize("v2", [False, True])
async def test_a_sandbox_that_is_accounted_for_as_a_whole_is_told_of_as_the_pod(tmp_path: Path, v2: bool) -> None:
    """What its containers can't be asked for is known of all of it; their layers, limits and starts stay theirs."""
    whole = seen(tmp_path / "tree", v2=v2)
    bare = ContainerUsage(dataclasses.replace(CONTAINER, resources=LIMITS), CgroupStats(SECOND), layer=FsUsage(tmp_path, 4096, 2, 9))
    counts = ProcessCounts(4, 20, 2)
    pod = dataclasses.replace(ready(bare, network=NETWORK), cgroup=whole.cgroup, details=whole.details, processes=counts)
    (metrics,) = await told(pod)
    of_pod, of_container = by_name(metrics), by_name(metrics.containers[0])
    theirs = {name: value for name, value in (V2 if v2 else V1).items() if "_spec_" not in name and "start_time" not in name}
    assert {name: value for name, value in of_pod.items() if "_network_" not in name} == {
        name: value for name, value in theirs.items() if "ulimits" not in name
    }
    names = {name.partition("{")[0] for name in (*of_pod, *of_container)}
    assert names >= metric_peers.CRITEST
    assert metrics.labels[2:] == ("", SANDBOX.id, "")


async def test_a_pod_whose_containers_have_cgroups_is_told_of_by_them(tmp_path: Path) -> None:
    whole = seen(tmp_path, v2=True)
    (metrics,) = await told(dataclasses.replace(ready(whole), cgroup=whole.cgroup))
    assert metrics.values == []
