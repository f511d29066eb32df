"""Statistics in CRI's messages: every field where it belongs, and nothing as zero that is not known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import convert_stats
from bridge.api.convert_stats import container_stats, pod_sandbox_stats
from bridge.api.pieces import Pieces
from bridge.core.stats import ContainerUsage, PodUsage
from bridge.host.cgroup_stats import CgroupStats, Memory, Pressure, Pressures, Swap
from bridge.host.net_stats import Interface, NetworkStats
from bridge.ports.images import FsUsage
from tests.unit.api.test_convert import CONTAINER, SANDBOX

WAITED = Pressures(Pressure(1.5, 0.25, 0.05, 1000), Pressure(0.5, 0.25, 0.0, 500))
TOLD = pb.PsiStats(
    some=pb.PsiData(total=1000, avg_10=1.5, avg_60=0.25, avg_300=0.05), full=pb.PsiData(total=500, avg_10=0.5, avg_60=0.25, avg_300=0.0)
)
LOOK = CgroupStats(
    at_ns=7,
    cpu_ns=100,
    memory=Memory(usage=50, working_set=40, rss=30, page_faults=20, major_page_faults=10, limit=60),
    swap=Swap(usage=5, limit=8),
    processes=3,
    cpu_pressure=WAITED,
    memory_pressure=WAITED,
    io_pressure=WAITED,
)
LAYER = FsUsage(Path("/snapshots"), 4096, 2, 9)


def of(number: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=number)


def test_every_field_of_a_container() -> None:
    found = container_stats(ContainerUsage(CONTAINER, LOOK, 11, LAYER))
    assert found.attributes is not None
    assert found.attributes.id == CONTAINER.id
    assert found.attributes.labels == dict(CONTAINER.config.labels)
    assert found.attributes.annotations == dict(CONTAINER.config.annotations)
    assert found.cpu == pb.CpuUsage(timestamp=7, usage_core_nano_seconds=of(100), usage_nano_cores=of(11), psi=TOLD)
    assert found.memory == pb.MemoryUsage(
        timestamp=7,
        working_set_bytes=of(40),
        available_bytes=of(20),
        usage_bytes=of(50),
        rss_bytes=of(30),
        page_faults=of(20),
        major_page_faults=of(10),
        psi=TOLD,
    )
    assert found.swap == pb.SwapUsage(timestamp=7, swap_available_bytes=of(3), swap_usage_bytes=of(5))
    assert found.io == pb.IoUsage(timestamp=7, psi=TOLD)
    place = pb.FilesystemIdentifier(mountpoint="/snapshots")
    assert found.writable_layer == pb.FilesystemUsage(timestamp=9, fs_id=place, used_bytes=of(4096), inodes_used=of(2))


def test_what_is_not_known_is_absent_not_zero() -> None:
    found = container_stats(ContainerUsage(CONTAINER, CgroupStats(7)))
    assert (found.cpu, found.memory, found.swap, found.io, found.writable_layer) == (None,) * 5
    some = CgroupStats(7, cpu_ns=0, memory=Memory(0), swap=Swap(0), cpu_pressure=Pressures(Pressure(0.0, 0.0, 0.0, 0)))
    found = container_stats(ContainerUsage(CONTAINER, some))
    assert found.cpu == pb.CpuUsage(timestamp=7, usage_core_nano_seconds=of(0), psi=pb.PsiStats(some=pb.PsiData()))
    assert found.memory == pb.MemoryUsage(timestamp=7, usage_bytes=of(0))
    assert found.swap == pb.SwapUsage(timestamp=7, swap_usage_bytes=of(0))


@pytest.mark.parametrize(("usage", "limit", "left"), [(50, None, None), (50, 60, 20), (50, 30, 0)])
def test_what_is_available_needs_a_limit(usage: int, limit: int | None, left: int | None) -> None:
    found = container_stats(ContainerUsage(CONTAINER, CgroupStats(7, memory=Memory(usage, working_set=40, limit=limit))))
    assert found.memory is not None
    assert found.memory.available_bytes == (None if left is None else of(left))


def test_every_field_of_a_pod() -> None:
    one, two = Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8), Interface("net1", 10, 20, 30, 40, 50, 60, 70, 80)
    members = (ContainerUsage(CONTAINER, LOOK, 11, LAYER),)
    found = pod_sandbox_stats(PodUsage(SANDBOX, members, LOOK, 12, NetworkStats(8, (two, one))))
    assert found.windows is None
    assert found.attributes is not None
    assert (found.attributes.id, found.attributes.labels) == (SANDBOX.id, dict(SANDBOX.config.labels))
    linux = found.linux
    assert linux is not None
    assert linux.cpu == pb.CpuUsage(timestamp=7, usage_core_nano_seconds=of(100), usage_nano_cores=of(12), psi=TOLD)
    assert linux.memory is not None
    assert linux.memory.working_set_bytes == of(40)
    assert linux.io == pb.IoUsage(timestamp=7, psi=TOLD)
    assert linux.process == pb.ProcessUsage(timestamp=7, process_count=of(3))
    assert linux.containers == [container_stats(members[0])]
    assert linux.network == pb.NetworkUsage(
        timestamp=8,
        default_interface=pb.NetworkInterfaceUsage(name="eth0", rx_bytes=of(1), rx_errors=of(3), tx_bytes=of(5), tx_errors=of(7)),
        interfaces=[pb.NetworkInterfaceUsage(name="net1", rx_bytes=of(10), rx_errors=of(30), tx_bytes=of(50), tx_errors=of(70))],
    )


def test_a_pod_of_which_nothing_is_known() -> None:
    linux = pod_sandbox_stats(PodUsage(SANDBOX)).linux
    assert linux == pb.LinuxPodSandboxStats()
    linux = pod_sandbox_stats(PodUsage(SANDBOX, cgroup=CgroupStats(7), network=NetworkStats(8, ()))).linux
    assert linux == pb.LinuxPodSandboxStats(network=pb.NetworkUsage(timestamp=8))


def test_an_encoding_is_kept_until_a_number_changes() -> None:
    pieces = Pieces(container_stats, convert_stats.container_version)
    pods = Pieces(pod_sandbox_stats, convert_stats.pod_version)
    first, same = ContainerUsage(CONTAINER, LOOK, 11, LAYER), ContainerUsage(CONTAINER, LOOK, 11, LAYER)
    other = ContainerUsage(CONTAINER, dataclasses.replace(LOOK, cpu_ns=101), 11, LAYER)
    kept = [next(pieces.of([each], 1)) for each in (first, same, other)]
    assert kept[0] is kept[1]
    assert kept[1] != kept[2]
    told = [next(pods.of([PodUsage(SANDBOX, (each,), LOOK, 12)], 1)) for each in (first, same, other)]
    assert told[0] is told[1]
    assert told[1] != told[2]
