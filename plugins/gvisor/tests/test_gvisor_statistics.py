"""What is told of containers in gVisor, and how seldom runsc is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import anyio
import pytest
from bridge_gvisor.host import GvisorHost
from bridge_gvisor.sampler import Sampler, parse
from bridge_gvisor.sandbox import GvisorSandbox

from bridge.errors import HostError
from bridge.host.cgroup_stats import CgroupStats
from bridge.ports.runtime import NamespacePaths, SandboxSpec


def test_statistics() -> None:
    data = {"cpu": {"usage": {"total": 108039471}}, "memory": {"usage": {"limit": 0, "usage": 3284992}}, "pids": {"current": 3}}
    found = parse({**data, "network_interfaces": []}, 5)
    assert (found.at_ns, found.cpu_ns, found.processes) == (5, 108039471, 3)
    assert found.memory is not None
    assert (found.memory.usage, found.memory.working_set, found.memory.limit) == (3284992, 3284992, None)
    empty = parse({"cpu": {"usage": "much"}, "memory": []}, 5)
    assert (empty.cpu_ns, empty.memory, empty.processes) == (None, None, None)
    assert parse(data, 5).processes is None, "an older runsc counts those of the whole sandbox"


class Asked:
    """A runsc that counts questions."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.fails = False
        self.gate = anyio.Event()
        self.gate.set()

    async def __call__(self, ident: str) -> Mapping[str, object]:
        self.questions.append(ident)
        await self.gate.wait()
        if self.fails:
            raise HostError("busy")
        return {"pids": {"current": len(self.questions)}, "network_interfaces": []}


async def test_statistics_are_asked_at_a_pace_of_their_own() -> None:
    asked = Asked()
    sampler = Sampler(asked, 1000)
    first = await sampler.of("a")
    assert first is not None
    assert first.processes == 1
    for _ in range(50):
        assert await sampler.of("a") == first, "asked again within the interval, nobody is run"
    assert (await sampler.of("b")) is not None
    assert asked.questions == ["a", "b"]
    sampler.forget("a")
    assert await sampler.of("a") != first


async def test_statistics_follow_and_failures_keep_the_last() -> None:
    asked = Asked()
    sampler = Sampler(asked, 1e-9)
    first, second = await sampler.of("a"), await sampler.of("a")
    assert first != second
    asked.fails = True
    assert await sampler.of("a") == second
    assert asked.questions == ["a"] * 3
    assert await sampler.of("b") is None


async def test_questions_that_come_together_are_one_and_two_run_at_once() -> None:
    asked = Asked()
    asked.gate = anyio.Event()
    sampler = Sampler(asked, 1000)
    async with anyio.create_task_group() as group:
        for ident in "aaabbbccc":
            group.start_soon(sampler.of, ident)
        await anyio.wait_all_tasks_blocked()
        assert asked.questions == ["a", "b"]
        asked.gate.set()
    assert asked.questions == ["a", "b", "c"]


async def test_a_caller_that_gives_up_leaves_the_others_their_turn() -> None:
    asked = Asked()
    asked.gate = anyio.Event()
    sampler = Sampler(asked, 1e-9)
    with anyio.move_on_after(0.01):
        await sampler.of("a")
    asked.gate.set()
    assert (await sampler.of("a")) is not None


async def test_many_containers_take_one_core_at_most() -> None:
    sampler = Sampler(Asked(), 0.1)
    sampler._takes = 0.05
    for number in range(16):
        await sampler.of(str(number))
    assert sampler.interval == 0.1
    sampler._takes = 0.05
    for number in range(84):
        sampler._entries[f"more-{number}"] = sampler._entries["0"]
    assert sampler.interval == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("reckoned", "spent", "told"),
    [
        ({"a": 30, "b": 10}, 50, {"a": 30, "b": 10}),
        ({"a": 30, "b": 10}, 20, {"a": 15, "b": 5}),
        ({"a": 30, "b": 10}, None, {"a": 30, "b": 10}),
        ({"a": 0, "b": 0}, 20, {"a": 0, "b": 0}),
    ],
)
async def test_containers_have_no_more_cpu_time_than_their_sandbox(
    reckoned: dict[str, int], spent: int | None, told: dict[str, int]
) -> None:
    async def ask(ident: str) -> Mapping[str, object]:
        return {"cpu": {"usage": {"total": {**reckoned, "other": 1000}[ident]}}}

    def look(cgroup: str) -> CgroupStats:
        return CgroupStats(1, cpu_ns=spent if cgroup == "/pod" else 5000)

    sampler = Sampler(ask, 1e-9, look)
    await sampler.of("other", "/pod2")
    found = {}
    for _ in range(2):  # the second time those of both are known
        for ident in reckoned:
            one = await sampler.of(ident, "/pod")
            assert one is not None
            found[ident] = one.cpu_ns
    assert found == told


async def test_a_share_that_shrinks_is_told_as_it_was_by_the_next_server_too(tmp_path: Path) -> None:
    reckoned, spent = {"a": 10, "b": 0}, 8

    async def ask(ident: str) -> Mapping[str, object]:
        return {"cpu": {"usage": {"total": reckoned[ident]}}}

    async def told() -> int | None:
        """By a server that has just begun."""
        sampler = Sampler(ask, 1e-9, lambda _: CgroupStats(1, cpu_ns=spent))
        for ident in ("b", "a"):
            one = await sampler.of(ident, "/pod", tmp_path / ident)
        assert one is not None
        return one.cpu_ns

    for _ in range(2):
        assert await told() == 8
        reckoned["b"], spent = 10, 15
    (tmp_path / "a").write_text("")
    assert await told() == 7, "what was kept is lost"
    assert (await Sampler(ask, 1).of("a", None, tmp_path / "gone" / "a")) is not None, "it ends meanwhile"


@pytest.mark.parametrize(
    ("cgroup", "path", "whole"),
    [
        ("/kubepods/pod1", "/kubepods/pod1/cri-bridge-sandbox-s1", "/kubepods/pod1"),
        ("", "/cri-bridge/cri-bridge-sandbox-s1", "/cri-bridge/cri-bridge-sandbox-s1"),
        ("", "kubepods-pod1.slice:cri-bridge:s1", "/kubepods.slice/kubepods-pod1.slice/cri-bridge-s1.scope"),
        ("", "", None),
    ],
)
def test_where_the_host_accounts_for_a_sandbox(tmp_path: Path, cgroup: str, path: str, whole: str | None) -> None:
    oci = {"linux": {"cgroupsPath": path}} if path else None
    spec = SandboxSpec(
        "s1", "n", "ns", "u", "h", tmp_path, NamespacePaths(), shared_pid=False, cgroup_parent=cgroup, oci=oci, cgroup=cgroup
    )
    assert GvisorSandbox(cast("GvisorHost", None), spec).cgroup == whole
