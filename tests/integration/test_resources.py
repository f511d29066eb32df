"""Limits as a kubelet asks for them: in force in the cgroup, reported as they are, changed while running, refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import blockio, cgroup_limits, cgroups, facts
from bridge.host.cgroup_paths import CgroupDriver
from tests.integration import pod_cgroups
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet, daemon_node
from tests.integration.limit_files import Limits

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

MIB = 1 << 20
V2 = cgroups.is_v2()
SYSTEMD = pod_cgroups.DRIVER is CgroupDriver.SYSTEMD


def linux(**resources: Any) -> pb.LinuxContainerConfig:
    options = pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER)
    context = pb.LinuxContainerSecurityContext(namespace_options=options)
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**resources), security_context=context)


async def limits_of(kubelet: Kubelet, container: str) -> Limits:
    return Limits((await kubelet.info(container))["pid"])


async def reported(kubelet: Kubelet, container: str) -> pb.LinuxContainerResources:
    resources = (await kubelet.status(container)).resources
    assert resources is not None
    assert resources.linux is not None
    return resources.linux


async def update(kubelet: Kubelet, container: str, **resources: Any) -> None:
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=pb.LinuxContainerResources(**resources))
    await kubelet.cri.runtime.update_container_resources(request)


def shares(number: int) -> int:
    return cgroup_limits.weight_of(number) if V2 else number


async def test_every_limit_is_in_force_and_reported(kubelet: Kubelet) -> None:
    host = facts.gather()
    wanted: dict[str, Any] = {
        "cpu_shares": 512,
        "cpu_quota": 50_000,
        "cpu_period": 100_000,
        "cpuset_cpus": "0",
        "cpuset_mems": "0",
        "memory_limit_in_bytes": 64 * MIB,
        "memory_swap_limit_in_bytes": 96 * MIB,
        "oom_score_adj": 500,
        "hugepage_limits": [pb.HugepageLimit(page_size=size, limit=4 * MIB) for size in host.hugepage_sizes if size == "2MB"],
    }
    if V2:
        wanted["unified"] = {"memory.high": str(48 * MIB)}
    pod = await kubelet.run()
    container = await kubelet.started(pod, linux=linux(**wanted))
    found = await limits_of(kubelet, container)
    assert (found.shares, found.quota, found.cpuset) == (shares(512), (50_000, 100_000), ("0", "0"))
    assert (found.memory, found.memory_and_swap, found.pids) == (64 * MIB, 96 * MIB, -1)
    if wanted["hugepage_limits"]:
        assert found.hugepages("2MB") == 4 * MIB
    if V2:
        assert found.text("memory", "memory.high") == str(48 * MIB)
    assert await kubelet.output(container, "cat /proc/1/oom_score_adj") == "500"
    assert await reported(kubelet, container) == pb.LinuxContainerResources(**wanted)


async def test_an_oom_score_below_what_the_server_may_give_is_reported_as_given(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, linux=linux(oom_score_adj=-900, cpu_shares=1))
    score = int(await kubelet.output(container, "cat /proc/1/oom_score_adj"))
    host = facts.gather()
    assert score == (-900 if host.can_lower_oom_score else max(-900, host.oom_score_adj))
    status = await reported(kubelet, container)
    assert (status.oom_score_adj, status.cpu_shares) == (score, 2)
    assert (await limits_of(kubelet, container)).shares == shares(2)


async def test_a_running_container_gets_new_limits(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, linux=linux(memory_limit_in_bytes=64 * MIB, cpu_shares=512, oom_score_adj=100))
    found = await limits_of(kubelet, container)
    await update(kubelet, container, cpu_quota=20_000, cpu_period=50_000)
    assert (found.quota, found.shares, found.memory) == ((20_000, 50_000), shares(512), 64 * MIB)
    await update(kubelet, container, cpu_shares=1024, oom_score_adj=900)
    assert (found.quota, found.shares) == ((20_000, 50_000), shares(1024))
    for memory in (128 * MIB, 32 * MIB):  # up and down again: limit and swap must be written in the right order
        await update(kubelet, container, memory_limit_in_bytes=memory)
        assert (found.memory, found.memory_and_swap) == (memory, memory)
    await update(kubelet, container, memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=40 * MIB)
    assert (found.memory, found.memory_and_swap) == (32 * MIB, 40 * MIB)
    await update(kubelet, container, cpuset_cpus="0", cpuset_mems="0")
    assert found.cpuset == ("0", "0")
    await update(kubelet, container, cpu_quota=-1)
    assert found.quota[0] == -1
    await update(kubelet, container)
    assert dataclasses.asdict(await reported(kubelet, container)) == dataclasses.asdict(
        pb.LinuxContainerResources(
            cpu_period=50_000,
            cpu_quota=-1,
            cpu_shares=1024,
            memory_limit_in_bytes=32 * MIB,
            memory_swap_limit_in_bytes=40 * MIB,
            cpuset_cpus="0",
            cpuset_mems="0",
            oom_score_adj=100,
        )
    )
    assert await kubelet.output(container, "cat /proc/1/oom_score_adj") == "100"
    spec = (await kubelet.info(container))["runtimeSpec"]["linux"]["resources"]
    assert (spec["memory"], spec["cpu"]["shares"]) == ({"limit": 32 * MIB, "swap": 40 * MIB}, 1024)


async def test_a_created_container_starts_with_its_new_limits(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.create(pod, linux=linux(memory_limit_in_bytes=64 * MIB))
    await update(kubelet, container, memory_limit_in_bytes=32 * MIB, cpu_shares=300)
    await kubelet.start(container)
    found = await limits_of(kubelet, container)
    assert (found.memory, found.memory_and_swap, found.shares) == (32 * MIB, 32 * MIB, shares(300))
    assert (await reported(kubelet, container)).memory_limit_in_bytes == 32 * MIB


async def test_updates_and_a_start_at_the_same_time_follow_each_other(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.create(pod)
    async with anyio.create_task_group() as group:
        group.start_soon(kubelet.start, container)
        for number in (200, 300, 400):
            group.start_soon(lambda number=number: update(kubelet, container, cpu_shares=number))
            group.start_soon(kubelet.status, container)
    now = (await reported(kubelet, container)).cpu_shares
    assert now in (200, 300, 400)
    assert (await limits_of(kubelet, container)).shares == shares(now)


async def test_less_memory_than_it_uses_is_refused_and_nothing_changes(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER))
    # Shared memory can't be reclaimed without swap; /dev/shm belongs to the pod, so it is charged to who writes it.
    command = "dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; echo held; exec sleep 1000"
    container = await kubelet.started(pod, command, linux=linux(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    await kubelet.log(pod, until=lambda lines: bool(lines))
    with pytest.raises(CriError, match=r"linux\.memory_limit_in_bytes: 16777216 is less than the \d+ bytes") as caught:
        await update(kubelet, container, memory_limit_in_bytes=16 * MIB, cpu_shares=700)
    assert caught.value.code.name == "FAILED_PRECONDITION"
    found = await limits_of(kubelet, container)
    assert (found.memory, found.memory_and_swap, found.shares) == (64 * MIB, 64 * MIB, shares(512))
    status = await reported(kubelet, container)
    assert (status.memory_limit_in_bytes, status.cpu_shares) == (64 * MIB, 512)


async def test_what_is_refused_names_its_field(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    absent = max(facts.gather().cpus) + 1
    for wanted, code, field in (
        ({"cpuset_cpus": str(absent)}, "INVALID_ARGUMENT", "cpuset_cpus"),
        ({"cpuset_mems": "0-"}, "INVALID_ARGUMENT", "cpuset_mems"),
        ({"cpu_shares": -5}, "INVALID_ARGUMENT", "cpu_shares"),
        ({"cpu_quota": 10}, "INVALID_ARGUMENT", "cpu_quota"),
        ({"cpu_period": 10}, "INVALID_ARGUMENT", "cpu_period"),
        ({"memory_limit_in_bytes": -5}, "INVALID_ARGUMENT", "memory_limit_in_bytes"),
        ({"memory_limit_in_bytes": MIB, "memory_swap_limit_in_bytes": 5}, "INVALID_ARGUMENT", "memory_swap_limit_in_bytes"),
        ({"oom_score_adj": 2000}, "INVALID_ARGUMENT", "oom_score_adj"),
        ({"hugepage_limits": [pb.HugepageLimit(page_size="3MB", limit=1)]}, "UNIMPLEMENTED", r"hugepage_limits\[0\]"),
        ({"unified": {"cgroup.procs": "1"}}, "INVALID_ARGUMENT" if V2 else "UNIMPLEMENTED", "unified"),
    ):
        with pytest.raises(CriError, match=rf"config\.linux\.resources\.{field}") as caught:
            await kubelet.create(pod, linux=linux(**wanted))
        assert caught.value.code.name == code
    container = await kubelet.started(pod)
    with pytest.raises(CriError, match=r"linux\.cpuset_cpus: this host has no CPU"):
        await update(kubelet, container, cpuset_cpus=str(absent))
    await kubelet.stop(container, 0)
    with pytest.raises(CriError, match="exited") as caught:
        await update(kubelet, container, cpu_shares=10)
    assert caught.value.code.name == "FAILED_PRECONDITION"
    with pytest.raises(CriError) as caught:
        await update(kubelet, "absent", cpu_shares=10)
    assert caught.value.code.name == "NOT_FOUND"


async def test_a_cgroup_parent_that_cannot_be_one_names_the_field(kubelet: Kubelet) -> None:
    for parent in ("/a/../../b", "/a\nb", "/" + "x" * 300, "/a:b", "/no-slice" if SYSTEMD else "/x.slice"):
        config = kubelet.pod_config()
        assert config.linux is not None
        config.linux.cgroup_parent = parent
        with pytest.raises(CriError, match=r"config\.linux\.cgroup_parent") as caught:
            await kubelet.run(config=config)
        assert caught.value.code.name == "INVALID_ARGUMENT"


@pytest.mark.skipif(SYSTEMD, reason="with systemd the slice is the kubelet's, whose limits it sets itself")
async def test_a_pod_cgroup_that_the_server_made_has_the_pods_limits(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.resources = pb.LinuxContainerResources(
        memory_limit_in_bytes=100 * MIB, cpu_quota=50_000, cpu_period=100_000, cpu_shares=100
    )
    config.linux.overhead = pb.LinuxContainerResources(memory_limit_in_bytes=28 * MIB, cpu_quota=10_000, cpu_period=100_000, cpu_shares=10)
    pod = await kubelet.run(config=config)
    parent = config.linux.cgroup_parent.lstrip("/")
    found = Limits.of({name: mount.directory(parent) for name, mount in cgroups.layout().mounts.items()})
    assert (found.memory, found.quota[0], found.shares) == (128 * MIB, 60_000, shares(110))
    request = pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod, resources=pb.LinuxContainerResources(memory_limit_in_bytes=200 * MIB, cpu_quota=100_000)
    )
    await kubelet.cri.runtime.update_pod_sandbox_resources(request)
    assert (found.memory, found.quota[0], found.shares) == (228 * MIB, 110_000, shares(110))
    about = await kubelet.pod_info(pod)
    assert about["resources"]["memory_limit_in_bytes"] == 200 * MIB
    assert about["overhead"]["memory_limit_in_bytes"] == 28 * MIB
    with pytest.raises(CriError, match=r"overhead\.cpu_quota"):
        await kubelet.cri.runtime.update_pod_sandbox_resources(
            pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, overhead=pb.LinuxContainerResources(cpu_quota=1))
        )
    assert found.quota[0] == 110_000


async def test_the_cgroup_of_a_container_is_read_only_inside(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    mounts = [line.split() for line in (await kubelet.output(container, "grep ' /sys/fs/cgroup' /proc/mounts")).splitlines()]
    hierarchies = [fields for fields in mounts if fields[2].startswith("cgroup")]
    assert hierarchies
    assert all(fields[3].startswith("ro,") for fields in hierarchies), hierarchies
    answer = await kubelet.exec(container, ["mkdir", f"{hierarchies[0][1]}/x"])
    assert answer.exit_code != 0
    assert b"Read-only" in answer.stderr


def _classes(root: Path) -> tuple[str, str]:
    """Runtime options of a node with classes of block I/O and a limit of processes."""
    (root / "classes.toml").write_text('[[Classes.slow]]\nDevices = ["/dev/vd*"]\nThrottleReadBps = "5M"\nThrottleWriteIOPS = 50\n')
    return f'pids_limit = 40\nblockio_config_file = "{root}/classes.toml"', ""


async def test_the_operators_limits_and_classes(crun_hierarchy: None) -> None:
    disks = blockio.block_devices("/dev/vd*")
    with daemon_node(prepare=_classes) as node:
        async with connect(node.socket) as cri:
            for name in node.handlers:
                await _of_the_operator(Kubelet(node, cri, name), disks)


async def _of_the_operator(kubelet: Kubelet, disks: list[tuple[int, int]]) -> None:
    config = kubelet.pod_config()
    config.annotations = {"blockio.resources.beta.kubernetes.io/container.slow": "slow"}
    pod = await kubelet.run(config=config)
    container = await kubelet.started(pod, name="plain")
    found = await limits_of(kubelet, container)
    assert found.pids == 40
    assert [line for line in _throttles(found) if line] == []
    await update(kubelet, container, cpu_shares=300)
    assert found.pids == 40
    slow = await limits_of(kubelet, await kubelet.started(pod, name="slow"))
    assert {f"{major}:{minor}" for major, minor in disks} == {line.split()[0] for line in _throttles(slow)}
    assert all("5000000" in line for line in _throttles(slow))
    config = kubelet.pod_config()
    config.annotations = {
        "blockio.resources.beta.kubernetes.io/container.one": "absent",
        "rdt.resources.beta.kubernetes.io/container.two": "gold",
    }
    pod = await kubelet.run(config=config)
    with pytest.raises(CriError, match=r"annotations\[blockio.*absent.*slow"):
        await kubelet.create(pod, name="one")
    if not facts.gather().resctrl:
        with pytest.raises(CriError, match=r"annotations\[rdt.*resctrl"):
            await kubelet.create(pod, name="two")
    await kubelet.clean()


def _throttles(found: Limits) -> list[str]:
    """A line for each device whose reads are throttled."""
    return found.text("io", "io.max").splitlines() if V2 else found.text("blkio", "blkio.throttle.read_bps_device").splitlines()
