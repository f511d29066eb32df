"""Core from end to end over fakes: what a kubelet sees of pods and containers."""

import dataclasses
import os
import signal

import anyio
import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import PodMetadata
from bridge.core.services import Services
from bridge.errors import AlreadyExists, IllegalTransition, InvalidRequest, NetworkFailed, NotFound, RuntimeFailed, TimedOut, Unavailable
from bridge.host import cgroups
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


async def test_life_of_a_pod(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    assert (sandbox.state, sandbox.handler, sandbox.ips) == (SandboxState.READY, "fake", ("10.99.0.2",))
    made = await core.containers.create(sandbox.id, container())
    assert made.state is ContainerState.CREATED
    await core.containers.start(made.id)
    assert core.containers.find(made.id[:10]).state is ContainerState.RUNNING
    await core.containers.stop(made.id, 10)
    stopped = core.containers.find(made.id)
    assert (stopped.state, stopped.exit_code, stopped.reason) == (ContainerState.EXITED, 143, "Error")
    assert stopped.created_at < stopped.started_at < stopped.finished_at
    await core.containers.remove(made.id)
    await core.sandboxes.stop(sandbox.id)
    assert core.sandboxes.find(sandbox.id).state is SandboxState.STOPPED
    await core.sandboxes.remove(sandbox.id)
    assert core.sandboxes.list() == []
    assert world.leftovers() == []


async def test_a_retry_joins_or_collects(core: Services) -> None:
    results = []

    async def run() -> None:
        results.append((await core.sandboxes.run(pod(), "")).id)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(run)
    await run()
    assert len(set(results)) == 1
    assert len(core.sandboxes.list()) == 1


async def test_a_caller_that_leaves_does_not_stop_the_work(core: Services) -> None:
    with anyio.move_on_after(0):
        await core.sandboxes.run(pod(), "")
    sandbox = await core.sandboxes.run(pod(), "")
    assert [found.id for found in core.sandboxes.list()] == [sandbox.id]


async def test_same_identity_with_other_configuration_is_refused(core: Services) -> None:
    await core.sandboxes.run(pod(), "")
    with pytest.raises(AlreadyExists, match="another configuration"):
        await core.sandboxes.run(pod(hostname="other"), "")
    await core.sandboxes.run(pod(metadata=PodMetadata("web", "uid-web", "default", 1)), "")


async def test_unknown_handler_lists_those_that_exist(core: Services) -> None:
    with pytest.raises(NotFound, match="fake; disabled: broken"):
        await core.sandboxes.run(pod(), "nope")


async def test_stop_and_remove_of_the_absent_succeed(core: Services) -> None:
    await core.sandboxes.stop("absent")
    await core.sandboxes.remove("absent")
    await core.containers.stop("absent", 1)
    await core.containers.remove("absent")


async def test_a_shorter_grace_brings_the_kill_forward(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    fake = world.backend.containers[made.id]
    fake.ignored = frozenset({signal.SIGTERM})
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(core.containers.stop, made.id, 86400)
            while not fake.signals:
                await anyio.lowlevel.checkpoint()
            await core.containers.stop(made.id, 0)
    assert fake.signals == [signal.SIGTERM, signal.SIGKILL]
    assert core.containers.find(made.id).exit_code == 137


async def test_what_even_a_kill_does_not_end_is_an_error_and_can_be_tried_again(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    world.backend.containers[made.id].ignored = frozenset({signal.SIGTERM, signal.SIGKILL})
    with pytest.raises(TimedOut, match="SIGKILL"):
        await core.containers.stop(made.id, 0)
    world.backend.containers[made.id].ignored = frozenset()
    await core.containers.stop(made.id, 0)


async def test_a_failed_start_is_told_with_the_runtimes_words(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    world.backend.faults.fail_on.add("start")
    with pytest.raises(RuntimeFailed, match="no such file"):
        await core.containers.start(made.id)
    failed = core.containers.find(made.id)
    assert (failed.state, failed.exit_code, failed.reason) == (ContainerState.EXITED, 128, "StartError")
    with pytest.raises(IllegalTransition):
        await core.containers.start(made.id)
    await core.containers.remove(made.id)


@pytest.mark.parametrize(("code", "oom", "reason"), [(0, False, "Completed"), (3, False, "Error"), (137, True, "OOMKilled")])
async def test_reasons(world: World, core: Services, code: int, oom: bool, reason: str) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    world.backend.containers[made.id].exit(code, oom=oom)
    await core.live.containers[made.id].exited.wait()
    assert core.containers.find(made.id).reason == reason


async def test_a_broken_network_plugin_does_not_keep_a_pod(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    world.network.faults.fail_on.add("delete")
    await core.sandboxes.remove(sandbox.id)
    assert core.sandboxes.list() == []
    assert list(core.store.detachments) == [sandbox.id], "the DEL is owed"


async def test_a_failing_add_leaves_nothing(world: World, core: Services) -> None:
    world.network.faults.fail_on.add("add")
    with pytest.raises(NetworkFailed, match="no more addresses"):
        await core.sandboxes.run(pod(), "")
    assert world.leftovers() == []
    assert (await core.sandboxes.run(pod(), "")).ips


async def test_stop_pod_kills_its_containers(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = [await core.containers.create(sandbox.id, container(name)) for name in ("a", "b")]
    for one in made:
        await core.containers.start(one.id)
    await core.sandboxes.stop(sandbox.id)
    assert {core.containers.find(one.id).exit_code for one in made} == {137}
    assert world.network.attached == {}
    await core.sandboxes.remove(sandbox.id)
    assert core.containers.list() == []
    assert world.leftovers() == []


async def test_ids_resolve_by_unique_prefix(core: Services) -> None:
    first = await core.sandboxes.run(pod("one"), "")
    second = await core.sandboxes.run(pod("two"), "")
    assert core.sandboxes.find(first.id[:12]).id == first.id
    with pytest.raises(NotFound):
        core.sandboxes.find("zz")
    shared = next((n for n in range(64) if first.id[:n] != second.id[:n]), 64) - 1
    with pytest.raises(InvalidRequest):
        core.sandboxes.find(first.id[:shared])


async def test_filters(core: Services) -> None:
    first = await core.sandboxes.run(pod("one", labels={"app": "x"}), "")
    second = await core.sandboxes.run(pod("two", labels={"app": "y"}), "")
    await core.sandboxes.stop(second.id)
    assert [s.id for s in core.sandboxes.list(labels={"app": "x"})] == [first.id]
    assert [s.id for s in core.sandboxes.list(ready=False)] == [second.id]
    assert core.sandboxes.list(ident="unknown") == []


async def test_bad_hostname_is_refused_before_anything_is_made(world: World, core: Services) -> None:
    with pytest.raises(InvalidRequest, match=r"config\.hostname"):
        await core.sandboxes.run(dataclasses.replace(pod(), hostname="x" * 65), "")
    assert core.sandboxes.list() == []
    assert world.leftovers() == []


async def test_a_pod_that_is_stopped_takes_running_creations_along(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    world.images.hold = anyio.Event()
    outcome: list[Exception] = []

    async def create() -> None:
        try:
            await core.containers.create(sandbox.id, container())
        except Unavailable as exc:
            outcome.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(create)
            while not core.store.members(sandbox.id):
                await anyio.lowlevel.checkpoint()
            await core.containers.remove(core.store.members(sandbox.id)[0].id)
            assert core.store.members(sandbox.id), "nobody was told that id yet: it is not there"
            await core.sandboxes.remove(sandbox.id)
    assert "cancelled" in str(outcome[0])
    assert core.store.containers == {}
    assert world.leftovers() == []


async def test_nothing_begins_in_a_pod_that_is_being_stopped(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.sandboxes.stop(sandbox.id)
    with pytest.raises(IllegalTransition, match="stopped"):
        await core.containers.start(made.id)
    with pytest.raises(IllegalTransition, match="stopped"):
        await core.containers.create(sandbox.id, container("other"))
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_pod_that_is_still_being_made_is_not_there_for_others(world: World, core: Services) -> None:
    world.network.hold = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(core.sandboxes.run, pod(), "")
            while not core.store.sandboxes:
                await anyio.lowlevel.checkpoint()
            (ident,) = core.store.sandboxes
            await core.sandboxes.remove(ident)
            await core.sandboxes.stop(ident)
            with pytest.raises(NotFound, match="still being created"):
                core.sandboxes.find(ident)
            world.network.hold.set()
    assert core.sandboxes.find(ident).state is SandboxState.READY


async def test_the_last_pod_below_a_new_cgroup_parent_removes_it(core: Services) -> None:
    top = f"/cri-bridge-heirs-{os.getpid()}"
    pods = [await core.sandboxes.run(pod(name, cgroup_parent=f"{top}/{name}"), "") for name in ("a", "b", "c")]
    assert [core.sandboxes.find(one.id).cgroup_owned for one in pods] == [top, f"{top}/b", f"{top}/c"]
    for one in pods:
        assert any(directory.exists() for directory in cgroups.layout().directories(top))
        await core.sandboxes.remove(one.id)
    assert not any(directory.exists() for directory in cgroups.layout().directories(top))


async def test_pods_that_go_at_once_leave_no_cgroup_parent(core: Services) -> None:
    top = f"/cri-bridge-heirs-{os.getpid()}"
    pods = [await core.sandboxes.run(pod(f"p{i}", cgroup_parent=f"{top}/{i}"), "") for i in range(12)]
    async with anyio.create_task_group() as group:
        for one in pods:
            group.start_soon(core.sandboxes.remove, one.id)
    assert not any(directory.exists() for directory in cgroups.layout().directories(top))
