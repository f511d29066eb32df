"""Updates of resources over a fake backend: what is recorded, refused, set back and kept over a restart."""

from __future__ import annotations

import dataclasses

import anyio
import pytest

from bridge.core.entities import ContainerState
from bridge.core.model import Resources
from bridge.core.services import Services
from bridge.errors import IllegalTransition, InvalidRequest, NotFound, RuntimeFailed, Unavailable, Unsupported
from bridge.host import facts
from bridge.ports.runtime import Ability, Feature, Support
from tests.component.conftest import World, container, pod

MIB = 1 << 20
SWAP = facts.gather().swap_accounting


async def made(core: Services, *, start: bool = True, **resources: object) -> str:
    sandbox = await core.sandboxes.run(pod(), "")
    config = container(resources=Resources(**resources))  # type: ignore[arg-type]
    ident = (await core.containers.create(sandbox.id, config)).id
    if start:
        await core.containers.start(ident)
    return ident


def in_force(core: Services, ident: str) -> Resources:
    found = core.store.container(ident).resources
    assert found is not None
    return found


async def test_the_record_tells_what_is_in_force_and_the_request_stays_as_it_was(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=1, memory_limit_in_bytes=MIB)
    before = core.store.container(ident)
    assert (in_force(core, ident).cpu_shares, in_force(core, ident).memory_swap_limit_in_bytes) == (2, MIB if SWAP else 0)
    await core.resources.update_container(ident, Resources(cpu_shares=100))
    after = core.store.container(ident)
    assert world.backend.containers[ident].updates == [{"cpu": {"shares": 100}}]
    assert after.resources == dataclasses.replace(before.resources, cpu_shares=100)  # type: ignore[type-var]
    assert (after.config, after.state, after.revision) == (before.config, ContainerState.RUNNING, before.revision + 1)


async def test_what_is_in_force_already_costs_nothing(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=100, cpu_quota=5000)
    before = core.store.container(ident)
    for change in (None, Resources(), Resources(cpu_shares=100), Resources(cpu_quota=5000, oom_score_adj=500)):
        await core.resources.update_container(ident, change)
    assert world.backend.containers[ident].updates == []
    assert core.store.container(ident) is before


async def test_a_failed_update_is_set_back_and_not_recorded(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=100, cpu_quota=5000, cpu_period=10_000)
    before = core.store.container(ident)
    world.backend.faults.fail_on.add("update")
    with pytest.raises(RuntimeFailed, match="busy"):
        await core.resources.update_container(ident, Resources(cpu_shares=200, cpu_quota=7000))
    forth, back = world.backend.containers[ident].updates
    assert forth == {"cpu": {"shares": 200, "quota": 7000, "period": 10_000}}
    assert back == {"cpu": {"shares": 100, "quota": 5000, "period": 10_000}}
    assert core.store.container(ident) is before
    await core.resources.update_container(ident, Resources(cpu_shares=200))
    assert in_force(core, ident).cpu_shares == 200


async def test_a_cancelled_update_is_set_back(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=100)
    before = core.store.container(ident)
    fake = world.backend.containers[ident]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await core.resources.update_container(ident, Resources(cpu_shares=200))
    assert core.store.container(ident) is before
    assert fake.updates in ([], [{"cpu": {"shares": 200}}, {"cpu": {"shares": 100}}])


async def test_only_a_created_or_running_container_can_be_updated(core: Services, world: World) -> None:
    ident = await made(core, start=False)
    await core.resources.update_container(ident, Resources(cpu_shares=200))
    assert in_force(core, ident).cpu_shares == 200
    await core.containers.start(ident)
    world.backend.containers[ident].exit(0)
    await core.live.container(ident).exited.wait()
    with pytest.raises(IllegalTransition, match="exited"):
        await core.resources.update_container(ident, Resources(cpu_shares=300))
    assert in_force(core, ident).cpu_shares == 200
    with pytest.raises(NotFound):
        await core.resources.update_container("absent", Resources(cpu_shares=300))


async def test_updates_of_one_container_follow_each_other(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=100)
    async with anyio.create_task_group() as group:
        for number in range(200, 210):
            group.start_soon(core.resources.update_container, ident, Resources(cpu_shares=number))
    assert world.backend.containers[ident].updates[-1] == {"cpu": {"shares": in_force(core, ident).cpu_shares}}
    assert len(world.backend.containers[ident].updates) == 10


async def test_what_is_refused_changes_nothing(core: Services, world: World) -> None:
    ident = await made(core, cpu_shares=100)
    before = core.store.container(ident)
    for change, field in (
        (Resources(cpu_shares=200, cpuset_cpus="0-9999"), "linux.cpuset_cpus"),
        (Resources(cpu_quota=1), "linux.cpu_quota"),
        (Resources(memory_swap_limit_in_bytes=1), "linux.memory_swap_limit_in_bytes"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await core.resources.update_container(ident, change)
        assert caught.value.field == field
    assert (core.store.container(ident), world.backend.containers[ident].updates) == (before, [])


async def test_hugepages_of_a_running_container_stay(core: Services, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.resources, "_facts", dataclasses.replace(facts.gather(), hugepage_sizes=("1GB", "2MB")))
    ident = await made(core, start=False)
    given = (("1GB", 0), ("2MB", 4 * MIB))
    await core.resources.update_container(ident, Resources(hugepage_limits=given))
    assert in_force(core, ident).hugepage_limits == given
    await core.containers.start(ident)
    await core.resources.update_container(ident, Resources(hugepage_limits=given, cpu_shares=100))  # a kubelet tells them each time
    with pytest.raises(Unsupported, match=r"linux\.hugepage_limits\[1\]"):
        await core.resources.update_container(ident, Resources(hugepage_limits=(("1GB", 0), ("2MB", 8 * MIB))))
    assert in_force(core, ident).hugepage_limits == given
    assert world.backend.containers[ident].updates[-1] == {"cpu": {"shares": 100}}


async def test_a_handler_without_the_ability_is_asked_nothing(core: Services, world: World) -> None:
    ident = await made(core)
    abilities = {**world.backend.features.abilities, Ability.UPDATE: Feature(Support.UNSUPPORTED)}
    world.backend.features = dataclasses.replace(world.backend.features, abilities=abilities)
    with pytest.raises(Unsupported, match="handler"):
        await core.resources.update_container(ident, Resources(cpu_shares=200))


async def test_a_handler_that_is_disabled_for_now_does_not_make_the_container_unknown(
    core: Services, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ident = await made(core)

    def disabled(name: str, opening: object = None) -> None:
        raise NotFound(f"runtime handler {name!r} is disabled")

    monkeypatch.setattr(core.ports.handlers, "backend", disabled)
    with pytest.raises(Unavailable, match="disabled"):
        await core.resources.update_container(ident, Resources(cpu_shares=200))


async def test_an_update_survives_the_restart_of_the_server(world: World) -> None:
    async with world.started() as core:
        ident = await made(core, cpu_shares=100)
        await core.resources.update_container(ident, Resources(cpu_shares=200, memory_limit_in_bytes=MIB))
        sandbox = core.store.container(ident).sandbox_id
        await core.resources.update_sandbox(sandbox, None, Resources(cpu_shares=7))
        recorded = in_force(core, ident)
    async with world.started() as core:
        await core.recovery.run()
        assert in_force(core, ident) == recorded
        assert core.store.sandbox(sandbox).resources == Resources(cpu_shares=7)
        await core.resources.update_container(ident, Resources(cpu_shares=300))
        assert in_force(core, ident) == dataclasses.replace(recorded, cpu_shares=300)
        await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


async def test_a_pods_resources_are_merged_and_recorded(core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(resources=Resources(cpu_shares=10), overhead=Resources(memory_limit_in_bytes=MIB)), "")
    await core.resources.update_sandbox(sandbox.id, None, Resources(cpu_quota=5000))
    now = core.store.sandbox(sandbox.id)
    assert (now.resources, now.overhead) == (Resources(cpu_shares=10, cpu_quota=5000), Resources(memory_limit_in_bytes=MIB))
    assert now.config is core.store.sandbox(sandbox.id).config
    assert await core.sandboxes.run(now.config, "") is now  # still the same request to a kubelet that asks again
    with pytest.raises(InvalidRequest) as caught:
        await core.resources.update_sandbox(sandbox.id, Resources(cpu_period=1), None)
    assert caught.value.field == "overhead.cpu_period"
    await core.sandboxes.stop(sandbox.id)
    with pytest.raises(IllegalTransition, match="stopped"):
        await core.resources.update_sandbox(sandbox.id, None, Resources(cpu_quota=6000))
    with pytest.raises(NotFound):
        await core.resources.update_sandbox("absent", None, None)


async def test_a_pod_whose_limits_or_cgroup_nothing_could_hold_is_refused_before_anything_is_made(core: Services, world: World) -> None:
    for changes, field in (
        ({"resources": Resources(cpu_quota=1)}, "config.linux.resources.cpu_quota"),
        ({"overhead": Resources(cpu_shares=-1)}, "config.linux.overhead.cpu_shares"),
        ({"cgroup_parent": "/a/../b"}, "config.linux.cgroup_parent"),
        ({"cgroup_parent": "/kubepods.slice"}, "config.linux.cgroup_parent"),
        ({"cgroup_parent": "/a\nb"}, "config.linux.cgroup_parent"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await core.sandboxes.run(pod(**changes), "")
        assert caught.value.field == field
    assert (dict(core.store.sandboxes), world.leftovers()) == ({}, [])
