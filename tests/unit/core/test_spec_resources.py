"""Limits, devices and cgroup paths."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bridge.core.model import ContainerSecurity, Resources
from bridge.core.spec import DeviceNode, build_container, cgroups_path
from bridge.core.spec_resources import build
from bridge.errors import ConfigError, InvalidRequest, Unsupported
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, facts, inputs, sandbox

DENY_ALL = {"allow": False, "access": "rwm"}


def _resources(wanted: Resources | None, host: Any = FACTS, **changes: Any) -> dict[str, Any]:
    spec = build_container(inputs(config=config(resources=wanted), **changes), host, SETTINGS)
    return dict(spec["linux"]["resources"])


def test_nothing_asked_nothing_limited() -> None:
    assert _resources(None) == {"devices": [DENY_ALL]}
    assert _resources(Resources()) == {"devices": [DENY_ALL]}


def test_cpu_and_memory() -> None:
    wanted = Resources(
        cpu_period=100000, cpu_quota=-1, cpu_shares=512, cpuset_cpus="0-1", cpuset_mems="0", memory_limit_in_bytes=1 << 26, oom_score_adj=1
    )
    assert _resources(wanted) == {
        "devices": [DENY_ALL],
        "cpu": {"shares": 512, "quota": -1, "period": 100000, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 1 << 26, "swap": 1 << 26},
    }


def test_swap_follows_the_accounting() -> None:
    wanted = Resources(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=300)
    assert _resources(wanted)["memory"] == {"limit": 100, "swap": 300}
    assert _resources(wanted, facts(swap_accounting=False))["memory"] == {"limit": 100}
    assert _resources(Resources(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=-1))["memory"] == {"limit": 100, "swap": -1}
    with pytest.raises(InvalidRequest, match="memory_swap_limit_in_bytes"):
        _resources(Resources(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=99))


def test_pids_from_the_settings() -> None:
    spec = build_container(inputs(), FACTS, dataclasses.replace(SETTINGS, pids_limit=1024))
    assert spec["linux"]["resources"]["pids"] == {"limit": 1024}


@pytest.mark.parametrize(("driver", "pids"), [("systemd", {"limit": -1}), ("cgroupfs", None)])
def test_no_pids_limit_is_none_under_systemd_too(driver: str, pids: dict[str, int] | None) -> None:
    """A scope of which nothing is said gets systemd's DefaultTasksMax."""
    settings = dataclasses.replace(SETTINGS, cgroup_driver=driver, pids_limit=0)
    assert build(None, (), False, FACTS, settings).get("pids") == pids


def test_hugepages() -> None:
    wanted = Resources(hugepage_limits=(("2MB", 4194304), ("1GB", 0)))
    assert _resources(wanted)["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4194304}]
    with pytest.raises(Unsupported, match=r"hugepage_limits\[0\]"):
        _resources(wanted, facts(hugepage_sizes=()))


def test_unified_is_for_cgroup_v2_and_for_controller_files_only() -> None:
    assert _resources(Resources(unified={"memory.high": "1"}))["unified"] == {"memory.high": "1"}
    with pytest.raises(Unsupported, match="unified"):
        _resources(Resources(unified={"memory.high": "1"}), facts(cgroup_v2=False))
    for key in ("../memory.high", "a/b.c", "cgroup.procs", "", ".x", "memory"):
        with pytest.raises(InvalidRequest, match="unified"):
            _resources(Resources(unified={key: "1"}))


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Resources(cpu_shares=-1), "cpu_shares"),
        (Resources(cpu_quota=-2), "cpu_quota"),
        (Resources(cpu_period=-1), "cpu_period"),
        (Resources(memory_limit_in_bytes=-2), "memory_limit_in_bytes"),
        (Resources(oom_score_adj=1001), "oom_score_adj"),
    ],
)
def test_out_of_range_names_the_field(wanted: Resources, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _resources(wanted)
    assert caught.value.field == f"config.linux.resources.{field}"


def test_devices() -> None:
    fuse = DeviceNode("/dev/fuse", "c", 10, 229, 0o666, permissions="rw")
    spec = build_container(inputs(devices=(fuse,)), FACTS, SETTINGS)
    assert spec["linux"]["resources"]["devices"] == [DENY_ALL, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}]
    assert spec["linux"]["devices"] == [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]
    privileged = inputs(devices=(fuse,), sandbox=sandbox(privileged=True), security=ContainerSecurity(privileged=True))
    assert build_container(privileged, FACTS, SETTINGS)["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


@pytest.mark.parametrize(
    ("driver", "parent", "path"),
    [
        ("cgroupfs", "/kubepods/burstable/podx", "/kubepods/burstable/podx/cri-bridge-id"),
        ("cgroupfs", "kubepods/", "/kubepods/cri-bridge-id"),
        ("cgroupfs", "", "/cri-bridge-id"),
        ("systemd", "/kubepods.slice/kubepods-podx.slice", "kubepods-podx.slice:cri-bridge:id"),
        ("systemd", "kubepods-podx.slice/", "kubepods-podx.slice:cri-bridge:id"),
        ("systemd", "", "system.slice:cri-bridge:id"),
    ],
)
def test_cgroups_path(driver: str, parent: str, path: str) -> None:
    assert cgroups_path(driver, parent, "cri-bridge", "id") == path


@pytest.mark.parametrize(
    ("driver", "parent"),
    [
        ("cgroupfs", "/pods/../../other"),
        ("systemd", "/kubepods/podx"),
        ("systemd", "a:b.slice"),
        ("systemd", "../x.slice"),
        ("cgroupfs", "a\0"),
    ],
)
def test_cgroup_parents_that_are_refused(driver: str, parent: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cgroups_path(driver, parent, "p", "id")
    assert caught.value.field == "config.linux.cgroup_parent"


def test_an_unknown_driver_is_a_mistake_of_the_operator() -> None:
    with pytest.raises(ConfigError, match="cgroup_driver"):
        cgroups_path("openrc", "", "p", "id")
