"""What the kernel itself says of a container that works, to hold statistics against; the tolerances stand here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.host import cgroups, net_stats
from bridge.host.cgroup_paths import CgroupDriver, parse_counter
from tests.integration import pod_cgroups
from tests.integration.daemon_node import DaemonNode, Kubelet
from tests.integration.limit_files import Limits

MIB = 1 << 20
HELD = 24 * MIB
WRITTEN = 6 * MIB
LIMIT = 256 * MIB
WORK = (
    "mkdir -p /root/dir; dd if=/dev/urandom of=/root/dir/held bs=1M count=6 2>/dev/null; sync; "
    "x=$(head -c 25165824 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; times; echo ready; "
    "sleep 100000; : ${#x}"
)
"""Holds 24 MiB, has written 6 MiB in two inodes below /root, burns CPU, says how much it used, and then does nothing."""


def value(number: pb.UInt64Value | None) -> int:
    assert number is not None
    return number.value


async def container_stats(kubelet: Kubelet, container: str) -> pb.ContainerStats:
    """Read at this moment."""
    answer = await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=container))
    assert answer.stats is not None
    return answer.stats


async def pod_stats(kubelet: Kubelet, pod: str) -> pb.LinuxPodSandboxStats:
    """Read at this moment."""
    answer = await kubelet.cri.runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))
    assert answer.stats is not None
    assert answer.stats.windows is None
    assert answer.stats.linux is not None
    return answer.stats.linux


async def worked(kubelet: Kubelet, pod: str, name: str = "app") -> tuple[str, int]:
    """Start WORK and wait until it has worked; the container and the CPU time in ns that it says it used."""
    container = await kubelet.started(pod, WORK, name=name, memory=LIMIT)
    with anyio.fail_after(60):
        lines = await kubelet.log(pod, name, until=lambda lines: any("ready" in line for line in lines))
    spent = [float(seconds) for seconds in re.findall(r"0m([\d.]+)s", "".join(lines))]
    return container, int(sum(spent[:2]) * 1e9)


class Kernel:
    """The cgroup files and the network of a process of the container."""

    def __init__(self, pid: int, files: Limits | None = None) -> None:
        self.pid = pid
        self._files = files or Limits(pid)

    @classmethod
    def of_pod(cls, kubelet: Kubelet, pod: str, pid: int) -> Kernel:
        """The files of the cgroup that the kubelet made for the pod, and the network of one of its processes."""
        linux = kubelet.configs[pod].linux
        assert linux is not None
        mounts = cgroups.layout().mounts
        return cls(pid, Limits.of({name: mount.directory(linux.cgroup_parent) for name, mount in mounts.items()}))

    @property
    def threads(self) -> int:
        return processes_below(self._files.directory("pids"))

    @property
    def cpu_ns(self) -> int:
        if cgroups.is_v2():
            return parse_counter(self._files.text("", "cpu.stat"), "usage_usec") * 1000
        return int(self._files.text("cpuacct", "cpuacct.usage"))

    @property
    def memory(self) -> dict[str, int]:
        """usage, working_set, rss, faults and major."""
        text = self._files.text("memory", "memory.stat")
        names = ("inactive_file", "anon", "pgfault", "pgmajfault")
        if not cgroups.is_v2():
            names = ("total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault")
        usage = int(self._files.text("memory", "memory.current" if cgroups.is_v2() else "memory.usage_in_bytes"))
        inactive, rss, faults, major = (parse_counter(text, name) for name in names)
        return {"usage": usage, "working_set": max(0, usage - inactive), "rss": rss, "faults": faults, "major": major}

    @property
    def interfaces(self) -> dict[str, net_stats.Interface]:
        """By name."""
        return {each.name: each for each in net_stats.parse(Path(f"/proc/{self.pid}/net/dev").read_text())}


def memory_between(told: pb.MemoryUsage, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Faults lie between two looks of the kernel's, levels within 1 MiB of them."""
    assert before["faults"] <= value(told.page_faults) <= after["faults"]
    assert before["major"] <= value(told.major_page_faults) <= after["major"]
    for name, found in (("usage", told.usage_bytes), ("working_set", told.working_set_bytes), ("rss", told.rss_bytes)):
        assert min(before[name], after[name]) - MIB <= value(found) <= max(before[name], after[name]) + MIB, name


async def agrees_with_the_kernel(kubelet: Kubelet, container: str, pid: int) -> None:
    """Counters lie between two looks of the kernel's; levels within 1 MiB of them; what has a limit tells what is left of it."""
    kernel = Kernel(pid)
    cpu, memory = kernel.cpu_ns, kernel.memory
    told = await container_stats(kubelet, container)
    after, later = kernel.cpu_ns, kernel.memory
    assert told.cpu is not None
    assert cpu <= value(told.cpu.usage_core_nano_seconds) <= after
    assert told.memory is not None
    memory_between(told.memory, memory, later)
    assert value(told.memory.rss_bytes) >= HELD
    assert value(told.memory.available_bytes) == LIMIT - value(told.memory.working_set_bytes)


async def agrees_with_the_workload(kubelet: Kubelet, container: str, used_ns: int) -> None:
    """What it says itself: its CPU time (half to thrice and the start, as a guest's kernel reckons roughly) and the memory it holds."""

    async def enough() -> bool:
        told = await container_stats(kubelet, container)
        assert told.cpu is not None
        assert told.memory is not None
        assert value(told.cpu.usage_core_nano_seconds) < 3 * used_ns + 20 * 10**9
        return value(told.cpu.usage_core_nano_seconds) >= used_ns // 2 and HELD * 0.9 <= value(told.memory.working_set_bytes) <= LIMIT

    await eventually(enough)


async def layer_is_what_du_says(kubelet: Kubelet, node: DaemonNode, container: str, *, least: int = WRITTEN) -> None:
    """Bytes and inodes of the writable layer are those that du finds, once it was measured; a sandbox may keep some of it a while."""
    (upper,) = node.root.glob(f"state/**/snapshots/{container}/upper")

    def truth() -> list[int]:
        found = []
        for option in ("--block-size=1", "--inodes"):
            done = subprocess.run(["du", "-s", option, str(upper)], check=True, capture_output=True, text=True, timeout=30)
            found.append(int(done.stdout.split()[0]))
        return found

    async def measured() -> bool:
        layer = (await container_stats(kubelet, container)).writable_layer
        assert layer is not None
        assert layer.fs_id is not None
        assert Path(layer.fs_id.mountpoint) in upper.parents
        return [value(layer.used_bytes), value(layer.inodes_used)] == await run_sync(truth)

    await eventually(measured)
    assert (await run_sync(truth))[0] >= least


async def network_is_what_the_pod_sees(kubelet: Kubelet, pod: str, pid: int) -> None:
    """Each counter of each interface lies between two looks at the pod's own /proc/net/dev."""
    kernel = Kernel(pid)
    before = kernel.interfaces
    network = (await pod_stats(kubelet, pod)).network
    after = kernel.interfaces
    assert network is not None
    assert network.default_interface is not None
    told = {each.name: each for each in (network.default_interface, *network.interfaces)}
    assert (network.default_interface.name, set(told)) == ("eth0", set(before))
    for name, each in told.items():
        for field in ("rx_bytes", "rx_errors", "tx_bytes", "tx_errors"):
            assert getattr(before[name], field) <= value(getattr(each, field)) <= getattr(after[name], field), (name, field)


async def pod_agrees_with_the_kernel(kubelet: Kubelet, pod: str, pid: int) -> None:
    """The pod's counters lie between two looks at its own cgroup, levels within 1 MiB of them, threads are as many once they stay.

    So do the counters of each of its interfaces, as process ``pid`` of the pod sees them.
    """
    kernel = Kernel.of_pod(kubelet, pod, pid)

    async def still() -> bool:
        threads, cpu, memory = kernel.threads, kernel.cpu_ns, kernel.memory
        told = await pod_stats(kubelet, pod)
        after, later = kernel.cpu_ns, kernel.memory
        assert told.cpu is not None
        assert cpu <= value(told.cpu.usage_core_nano_seconds) <= after
        assert told.memory is not None
        memory_between(told.memory, memory, later)
        assert told.process is not None
        return threads == value(told.process.process_count) == kernel.threads > 0

    await eventually(still)
    await network_is_what_the_pod_sees(kubelet, pod, pid)


async def pods_limit_follows(kubelet: Kubelet, pod: str) -> None:
    """UpdatePodSandboxResources is in the pod's statistics at once, where its cgroup is the server's; a kubelet limits its own."""
    if pod_cgroups.DRIVER is CgroupDriver.SYSTEMD:
        return
    limit = 700 * MIB
    await kubelet.cri.runtime.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=pb.LinuxContainerResources(memory_limit_in_bytes=limit))
    )
    memory = (await pod_stats(kubelet, pod)).memory
    assert memory is not None
    assert value(memory.available_bytes) == limit - value(memory.working_set_bytes)


async def metrics(kubelet: Kubelet, pod: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """The pod's own and its containers', by name without its prefix and by own labels; their labels are as described."""
    runtime = kubelet.cri.runtime
    described = {
        each.name: each.label_keys for each in (await runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())).descriptors
    }
    answer = await runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
    (told,) = (each for each in answer.pod_metrics if each.pod_sandbox_id == pod)
    meta = kubelet.configs[pod].metadata
    assert meta is not None
    base = [meta.name, meta.namespace]
    status = {each.container_id: (await kubelet.status(each.container_id)).metadata for each in told.container_metrics}
    of_pod = by_own_labels(told.metrics, described, [*base, "", pod, ""])
    of_containers = {}
    for each in told.container_metrics:
        named = status[each.container_id]
        assert named is not None
        labels = [*base, named.name, each.container_id, each.metrics[0].label_values[4]]
        of_containers[each.container_id] = by_own_labels(each.metrics, described, labels)
    return of_pod, of_containers


def by_own_labels(metrics: list[pb.Metric], described: dict[str, list[str]], base: list[str]) -> dict[str, int]:
    """Values by name and own labels; a series that comes twice, or has other labels, is what a kubelet would refuse."""
    found: dict[str, int] = {}
    for each in metrics:
        assert len(each.label_values) == len(described[each.name]), each.name
        assert each.label_values[:5] == base
        key = ":".join((each.name.removeprefix("container_"), *each.label_values[5:]))
        assert key not in found
        assert each.value is not None
        found[key] = each.value.value
    return found


async def eventually(true: Any, seconds: float = 40.0) -> None:
    """Wait until the async ``true`` is."""
    with anyio.fail_after(seconds):
        while not await true():
            await anyio.sleep(0.2)


def processes_below(directory: Path) -> int:
    """Threads in a cgroup and below, as pids.current counts them."""
    name = "cgroup.threads" if cgroups.is_v2() else "tasks"
    return sum(len((Path(place) / name).read_text().split()) for place, _, _ in os.walk(directory))
