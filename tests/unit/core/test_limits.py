"""Limits: what is refused, what is clamped, what an update changes and how it goes back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bridge.core import limits
from bridge.core.model import Resources
from bridge.errors import InvalidRequest, Unsupported
from tests.unit.core.spec_cases import facts

MIB = 1 << 20
HOST = facts(cpus=frozenset(range(4)), memory_nodes=frozenset({0}), hugepage_sizes=("2MB", "1GB"), controllers=frozenset({"memory", "cpu"}))
V1 = facts(cgroup_v2=False)


def built(host: Any = HOST, **wanted: Any) -> dict[str, Any]:
    return limits.build(Resources(**wanted), host)


def test_each_field_reaches_its_place() -> None:
    assert built(cpu_shares=512, cpu_quota=20_000, cpu_period=50_000, cpuset_cpus="0-1,3", cpuset_mems="0") == {
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0-1,3", "mems": "0"}
    }
    assert built(memory_limit_in_bytes=64 * MIB) == {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}
    assert built(hugepage_limits=(("2MB", 2 * MIB), ("1GB", 0))) == {
        "hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}, {"pageSize": "1GB", "limit": 0}]
    }
    assert built(unified={"memory.high": "1000", "cpu.idle": "1"}) == {"unified": {"memory.high": "1000", "cpu.idle": "1"}}
    assert built() == {}


@pytest.mark.parametrize(("asked", "given"), [(1, 2), (2, 2), (1024, 1024), (262144, 262144), (999_999, 262144)])
def test_shares_are_clamped_to_what_the_kernel_makes_of_them(asked: int, given: int) -> None:
    assert built(cpu_shares=asked)["cpu"] == {"shares": given}


@pytest.mark.parametrize(
    ("limit", "swap", "memory"),
    [
        (0, 0, None),  # nothing said: left alone
        (64, 0, {"limit": 64, "swap": 64}),  # a limit is a limit
        (64, 64, {"limit": 64, "swap": 64}),  # equal: no swap
        (64, 100, {"limit": 64, "swap": 100}),
        (64, -1, {"limit": 64, "swap": -1}),
        (-1, 0, {"limit": -1, "swap": -1}),
        (0, -1, {"swap": -1}),
    ],
)
def test_swap_as_kubelets_ask_for_it(limit: int, swap: int, memory: dict[str, int] | None) -> None:
    assert built(memory_limit_in_bytes=limit, memory_swap_limit_in_bytes=swap).get("memory") == memory


def test_a_kubelet_on_v2_speaks_of_swap_in_unified_alone() -> None:
    parts = built(memory_limit_in_bytes=64, unified={"memory.swap.max": "36"})
    assert parts == {"memory": {"limit": 64}, "unified": {"memory.swap.max": "36"}}
    assert limits.in_force(parts, 0).memory_swap_limit_in_bytes == 0


def test_without_swap_accounting_there_is_no_swap_limit_and_none_is_reported() -> None:
    bare = facts(swap_accounting=False)
    parts = built(bare, memory_limit_in_bytes=64, memory_swap_limit_in_bytes=100)
    assert parts == {"memory": {"limit": 64}}
    assert limits.in_force(parts, 0).memory_swap_limit_in_bytes == 0


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"cpu_shares": -1}, "cpu_shares"),
        ({"cpu_quota": -2}, "cpu_quota"),
        ({"cpu_quota": 999}, "cpu_quota"),
        ({"cpu_period": 999}, "cpu_period"),
        ({"cpu_period": 1_000_001}, "cpu_period"),
        ({"cpuset_cpus": "0-4"}, "cpuset_cpus"),
        ({"cpuset_cpus": "3-1"}, "cpuset_cpus"),
        ({"cpuset_cpus": "1,,2"}, "cpuset_cpus"),
        ({"cpuset_cpus": "0-99999999"}, "cpuset_cpus"),
        ({"cpuset_cpus": "0\n"}, "cpuset_cpus"),
        ({"cpuset_cpus": " "}, "cpuset_cpus"),
        ({"cpuset_mems": "1"}, "cpuset_mems"),
        ({"cpuset_mems": "x"}, "cpuset_mems"),
        ({"memory_limit_in_bytes": -2}, "memory_limit_in_bytes"),
        ({"memory_limit_in_bytes": 64, "memory_swap_limit_in_bytes": 63}, "memory_swap_limit_in_bytes"),
        ({"memory_swap_limit_in_bytes": 64}, "memory_swap_limit_in_bytes"),
        ({"memory_swap_limit_in_bytes": -2}, "memory_swap_limit_in_bytes"),
        ({"hugepage_limits": (("2MB", 1), ("2MB", 2))}, "hugepage_limits[1].page_size"),
        ({"unified": {"io.max": "1"}}, "unified"),
        ({"unified": {"cgroup.procs": "1"}}, "unified"),
        ({"unified": {"memory/../x.y": "1"}}, "unified"),
        ({"unified": {"memory.high": "1\n2"}}, "unified"),
    ],
)
def test_what_is_refused_names_its_field(wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        limits.build(Resources(**wanted), HOST, "linux")
    assert caught.value.field == f"linux.{field}"


def test_what_the_host_lacks_names_its_field() -> None:
    with pytest.raises(Unsupported, match=r"config\.linux\.resources\.hugepage_limits\[1\]"):
        built(hugepage_limits=(("2MB", 1), ("16GB", 1)))
    with pytest.raises(Unsupported, match=r"config\.linux\.resources\.unified"):
        built(V1, unified={"memory.high": "1"})
    assert built(hugepage_limits=(("16GB", 0),)) == {}


def test_what_is_in_force_is_what_was_built() -> None:
    wanted = Resources(cpu_shares=1, cpu_quota=5000, memory_limit_in_bytes=MIB, hugepage_limits=(("2MB", 4),), unified={"cpu.idle": "1"})
    reported = limits.in_force(limits.build(wanted, HOST), -5)
    assert reported == dataclasses.replace(wanted, cpu_shares=2, memory_swap_limit_in_bytes=MIB, oom_score_adj=-5)
    assert limits.build(reported, HOST) == limits.build(wanted, HOST)


def test_zero_leaves_what_is_there() -> None:
    current = Resources(cpu_shares=100, cpu_quota=5000, memory_limit_in_bytes=MIB, memory_swap_limit_in_bytes=2 * MIB, oom_score_adj=7)
    assert limits.merged(current, Resources()) == current
    assert limits.merged(current, Resources(cpu_shares=200, oom_score_adj=900)) == dataclasses.replace(current, cpu_shares=200)
    grown = limits.merged(current, Resources(memory_limit_in_bytes=3 * MIB))
    assert (grown.memory_limit_in_bytes, grown.memory_swap_limit_in_bytes) == (3 * MIB, 0)
    merged = limits.merged(
        Resources(unified={"a.b": "1", "c.d": "1"}, hugepage_limits=(("2MB", 1),)),
        Resources(unified={"a.b": "2"}, hugepage_limits=(("1GB", 3),)),
    )
    assert (merged.unified, merged.hugepage_limits) == ({"a.b": "2", "c.d": "1"}, (("2MB", 1), ("1GB", 3)))


@pytest.mark.parametrize(
    ("old", "new", "forth", "back"),
    [
        ({}, {}, {}, {}),
        ({"cpu_shares": 10}, {"cpu_shares": 20}, {"cpu": {"shares": 20}}, {"cpu": {"shares": 10}}),
        ({}, {"cpu_shares": 20}, {"cpu": {"shares": 20}}, {"cpu": {"shares": 1024}}),
        (
            {"cpu_quota": 5000, "cpu_period": 10_000, "cpu_shares": 9},
            {"cpu_quota": 7000, "cpu_period": 10_000, "cpu_shares": 9},
            {"cpu": {"quota": 7000, "period": 10_000}},
            {"cpu": {"quota": 5000, "period": 10_000}},
        ),
        ({}, {"memory_limit_in_bytes": 64}, {"memory": {"limit": 64, "swap": 64}}, {"memory": {"limit": -1, "swap": -1}}),
        (
            {"memory_limit_in_bytes": 64, "memory_swap_limit_in_bytes": 100},
            {"memory_limit_in_bytes": 64, "memory_swap_limit_in_bytes": 120},
            {"memory": {"limit": 64, "swap": 120}},
            {"memory": {"limit": 64, "swap": 100}},
        ),
        ({"cpuset_cpus": "0"}, {"cpuset_cpus": "1"}, {"cpu": {"cpus": "1"}}, {"cpu": {"cpus": "0"}}),
        ({}, {"cpuset_cpus": "1"}, {"cpu": {"cpus": "1"}}, {}),
        ({"unified": {"cpu.idle": "0"}}, {"unified": {"cpu.idle": "1"}}, {"unified": {"cpu.idle": "1"}}, {"unified": {"cpu.idle": "0"}}),
    ],
)
def test_an_update_says_only_what_changes_and_knows_the_way_back(
    old: dict[str, Any], new: dict[str, Any], forth: dict[str, Any], back: dict[str, Any]
) -> None:
    before, after = built(**old), built(**new)
    assert limits.difference(before, after) == forth
    assert limits.difference(after, before) == back


@pytest.mark.parametrize("linux", [{}, {"resources": None}, {"resources": {"memory": {"limit": 7}}}])
def test_a_spec_that_a_hook_has_cut_down_limits_what_is_left_of_it(linux: dict[str, Any]) -> None:
    found = limits.of_spec({"linux": linux, "process": {}})
    assert found == Resources(memory_limit_in_bytes=7 if linux.get("resources") else 0)
