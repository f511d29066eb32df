"""The limits of a pod's cgroup, written into recorded trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import cgroup_limits
from bridge.host.cgroup_limits import PodLimits, weight_of
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount


def tree(root: Path, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def v2(root: Path) -> CgroupLayout:
    tree(root, "pods/p/cpu.weight", "pods/p/cpu.max", "pods/p/memory.max")
    return CgroupLayout({"": CgroupMount(root)})


def test_v2(tmp_path: Path) -> None:
    layout = v2(tmp_path)
    cgroup_limits.apply("/pods/p", PodLimits(shares=2048, quota=50_000, period=100_000, memory=1 << 20), on=layout)
    pod = tmp_path / "pods/p"
    assert [(pod / name).read_text() for name in ("cpu.weight", "cpu.max", "memory.max")] == ["79", "50000 100000", "1048576"]
    cgroup_limits.apply("/pods/p", PodLimits(), on=layout)
    assert [(pod / name).read_text() for name in ("cpu.weight", "cpu.max", "memory.max")] == ["100", "max 100000", "max"]


def test_v1(tmp_path: Path) -> None:
    tree(tmp_path, *(f"cpu/p/cpu.{name}" for name in ("shares", "cfs_quota_us", "cfs_period_us")), "memory/p/memory.limit_in_bytes")
    layout = CgroupLayout({name: CgroupMount(tmp_path / name) for name in ("cpu", "memory")})
    cgroup_limits.apply("/p", PodLimits(shares=2048, quota=50_000, period=100_000, memory=1 << 20), on=layout)
    assert (tmp_path / "cpu/p/cpu.shares").read_text() == "2048"
    assert (tmp_path / "cpu/p/cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "memory/p/memory.limit_in_bytes").read_text() == "1048576"


def test_a_controller_that_is_not_handed_down_limits_nothing(tmp_path: Path) -> None:
    layout = v2(tmp_path)
    (tmp_path / "pods/p/memory.max").unlink()
    cgroup_limits.apply("/pods/p", PodLimits(memory=1), on=layout)
    assert not (tmp_path / "pods/p/memory.max").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    layout = v2(tmp_path)
    (tmp_path / "pods/p/cpu.max").unlink()
    (tmp_path / "pods/p/cpu.max").mkdir()
    with pytest.raises(HostError, match=r"cpu\.max"):
        cgroup_limits.apply("/pods/p", PodLimits(), on=layout)


@pytest.mark.parametrize(("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (2048, 79), (262144, 10000), (1 << 30, 10000)])
def test_weights(shares: int, weight: int) -> None:
    assert weight_of(shares) == weight
