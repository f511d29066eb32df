"""Statistics over fakes: who is counted, what is left out, and that a list reads nothing of what does not run."""

from __future__ import annotations

import os
from typing import cast

import anyio
import pytest

from bridge.core.services import Services
from bridge.errors import NotFound, PluginFailed
from bridge.host import cgroups
from bridge.ports.runtime import ContainerHandle, SandboxHandle, SandboxKind
from tests.component.conftest import World, container, pod

OWN = cgroups.of_pid(os.getpid())


def own_cgroup() -> str:
    """A cgroup that exists: this process's."""
    name = "" if cgroups.is_v2() else "memory"
    mount = cgroups.layout().mounts[name]
    return "/" + str(OWN[name].relative_to(mount.point))


async def started(core: Services, world: World, name: str = "app", **changes: object) -> str:
    sandbox = next(iter(core.store.sandboxes), None) or (await core.sandboxes.run(pod(), "")).id
    ident = (await core.containers.create(sandbox, container(name, **changes))).id
    world.backend.containers[ident].cgroup = own_cgroup()
    await core.containers.start(ident)
    return ident


async def test_one_that_runs(core: Services, world: World) -> None:
    ident = await started(core, world)
    usage = await core.stats.container(ident)
    assert usage.container.id == ident
    assert usage.cgroup is not None
    assert usage.cgroup.memory is not None
    assert usage.cgroup.memory.usage > 0
    assert usage.layer is not None


async def test_one_that_ended_has_its_layer_alone(core: Services, world: World) -> None:
    ident = await started(core, world)
    world.backend.containers[ident].exit(0)
    await core.live.container(ident).exited.wait()
    usage = await core.stats.container(ident)
    assert (usage.cgroup, usage.nano_cores) == (None, None)
    assert usage.layer is not None
    assert [one.container.id for one in await core.stats.containers()] == [ident]


async def test_one_whose_backend_must_be_asked_has_no_cgroup(core: Services, world: World) -> None:
    ident = await started(core, world)
    world.backend.containers[ident].cgroup = None
    assert (await core.stats.container(ident)).cgroup is None


async def test_filters(core: Services, world: World) -> None:
    one = await started(core, world, "one", labels={"app": "x"})
    two = await started(core, world, "two", labels={"app": "y"})
    sandbox = core.store.container(one).sandbox_id

    async def found(*condition: object) -> list[str]:
        return [usage.container.id for usage in await core.stats.containers(*condition)]  # type: ignore[arg-type]

    assert await found() == [one, two]
    assert await found(two) == [two]
    assert await found("", sandbox) == [one, two]
    assert await found("", "other") == []
    assert await found("", "", {"app": "x"}) == [one]
    assert await found("absent") == []
    assert [usage.sandbox.id for usage in await core.stats.sandboxes(sandbox)] == [sandbox]
    assert await core.stats.sandboxes("absent") == []
    assert await core.stats.sandboxes("", {"no": "label"}) == []


async def test_what_is_absent_is_not_found(core: Services) -> None:
    with pytest.raises(NotFound):
        await core.stats.container("absent")
    with pytest.raises(NotFound):
        await core.stats.sandbox("absent")


async def test_a_pod_has_its_containers_its_network_and_no_cgroup_of_others(core: Services, world: World) -> None:
    ident = await started(core, world)
    sandbox = core.store.container(ident).sandbox_id
    usage = await core.stats.sandbox(sandbox)
    assert [one.container.id for one in usage.containers] == [ident]
    assert usage.cgroup is not None  # it named none: what its containers use
    assert usage.cgroup.memory is not None
    assert usage.containers[0].cgroup is not None
    assert usage.containers[0].cgroup.memory is not None
    assert usage.cgroup.memory.usage == usage.containers[0].cgroup.memory.usage
    assert usage.network is not None  # a real namespace, with a loopback only
    assert usage.network.interfaces == ()
    await core.sandboxes.stop(sandbox)
    stopped = await core.stats.sandbox(sandbox)
    assert stopped.network is None
    assert (stopped.cgroup, stopped.containers[0].cgroup) == (None, None)


async def test_the_files_of_what_ends_are_closed_when_it_ends(core: Services, world: World) -> None:
    one, two = await started(core, world, "one"), await started(core, world, "two")
    world.backend.containers[two].cgroup = None  # one cgroup, that of this process, for both would be closed for both
    await core.stats.containers()
    assert core.stats.sampler.open_files > 0
    world.backend.containers[one].exit(0)
    await core.live.container(one).exited.wait()
    with anyio.fail_after(10):
        while core.stats.sampler.open_files:
            await anyio.sleep(0.01)


async def test_lists_tell_samples_and_single_ones_the_moment(core: Services, world: World) -> None:
    ident = await started(core, world)
    sandbox = core.store.container(ident).sandbox_id

    async def times(*, single: bool) -> list[int]:
        looks = [(await core.stats.containers(ident if single else ""))[0].cgroup]
        looks += [(await core.stats.sandboxes(sandbox if single else ""))[0].containers[0].cgroup]
        return [look.at_ns for look in looks if look is not None]

    first = await times(single=False)
    assert len(set(first)) == 1
    assert await times(single=False) == first
    exact = await times(single=True)
    assert first[0] < exact[0] < exact[1]
    assert (await core.stats.container(ident)).cgroup is not None
    assert len(await times(single=False)) == 2


async def test_a_sandbox_with_a_cgroup_is_counted_as_a_whole(world: World) -> None:
    """Its containers have none of their own. Its process's limit of files is not the pod's."""
    world.backend.sandbox_kind = SandboxKind.CONTAINER
    async with world.started() as core:
        sandbox = (await core.sandboxes.run(pod(), "")).id
        ident = (await core.containers.create(sandbox, container("app"))).id
        world.backend.containers[ident].cgroup = None
        await core.containers.start(ident)
        assert (await core.stats.sandbox(sandbox)).cgroup is None
        world.backend.sandboxes[sandbox].cgroup = own_cgroup()
        usage = await core.stats.sandbox(sandbox)
        assert usage.cgroup is not None
        assert usage.cgroup.memory is not None
        assert (usage.details, usage.processes, usage.containers[0].cgroup) == (None, None, None)
        (usage,) = await core.stats.sandboxes(detailed=True)
        assert usage.details is not None
        assert usage.processes is not None
        assert usage.processes.processes >= 1
        assert usage.processes.open_files_limit is None
        await core.sandboxes.stop(sandbox)
        assert (await core.stats.sandbox(sandbox)).cgroup is None


@pytest.mark.parametrize("of", ["sandbox", "container"])
async def test_a_plugin_that_fails_at_its_cgroup_costs_its_own_numbers(core: Services, world: World, of: str) -> None:
    one, two = await started(core, world, "one"), await started(core, world, "two")
    sandbox = core.store.container(one).sandbox_id

    class Broken:
        @property
        def cgroup(self) -> str:
            raise PluginFailed("it broke")

        async def stats(self) -> None:
            raise PluginFailed("it broke")

    if of == "sandbox":
        core.live.sandboxes[sandbox] = cast("SandboxHandle", Broken())
    else:
        core.live.containers[one].handle = cast("ContainerHandle", Broken())
    found = {usage.id: usage.cgroup is not None for usage in await core.stats.containers()}
    assert found == {one: of == "sandbox", two: True}
    assert [usage.id for usage in await core.stats.sandboxes()] == [sandbox]
    core.live.sandboxes[sandbox] = world.backend.sandboxes[sandbox]
    core.live.containers[one].handle = world.backend.containers[one]
