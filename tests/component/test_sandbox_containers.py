"""Pods of a backend whose containers live inside a sandbox container: what it is asked for, its death, and a restart."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import anyio
import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import (
    ContainerSecurity,
    DeviceRequest,
    MountPropagation,
    MountRequest,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    ProfileType,
    Resources,
    SandboxSecurity,
    SecurityProfile,
)
from bridge.core.services import Services
from bridge.errors import IllegalTransition, Unsupported
from bridge.host import cgroups
from bridge.host.cgroup_stats import CgroupStats, Memory
from bridge.ports.runtime import CONTAINER_PID_NAMESPACE, Ability, Feature, SandboxKind, Support
from bridge.testing.fakes import FakeBackend, FakeContainer, FakeSandbox
from tests.component.conftest import PRIVATE_PID, World, container, pod

pytestmark = pytest.mark.root


@pytest.fixture(params=[SandboxKind.CONTAINER, SandboxKind.VM])
def world(world: World, request: pytest.FixtureRequest) -> World:
    world.backend = FakeBackend(request.param)
    return world


async def running(core: Services, world: World, config: PodConfig | None = None) -> tuple[FakeSandbox, FakeContainer]:
    sandbox = await core.sandboxes.run(config or pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    return world.backend.sandboxes[sandbox.id], world.backend.containers[made.id]


def without(world: World, *abilities: Ability) -> None:
    missing = dict.fromkeys(abilities, Feature(Support.UNSUPPORTED, "its kernel is its own"))
    world.backend.features = dataclasses.replace(world.backend.features, abilities={**world.backend.features.abilities, **missing})


async def not_ready(core: Services, ident: str) -> None:
    def stopped() -> bool:
        return core.sandboxes.find(ident).state is not SandboxState.READY

    with anyio.fail_after(10):
        async with core.store.changes.subscribe() as changes:
            if stopped():
                return
            async for _ in changes:
                if stopped():
                    return


async def test_what_the_backend_is_given(core: Services, world: World) -> None:
    limits = Resources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=64 << 20)
    config = pod(
        hostname="inside",
        log_directory="/var/log/pods/x",
        resources=limits,
        overhead=Resources(cpu_shares=10, memory_limit_in_bytes=32 << 20),
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80"},
    )
    sandbox, member = await running(core, world, config)
    oci = sandbox.spec.oci
    assert oci is not None
    assert (oci["hostname"], oci["process"]["args"]) == ("inside", ["/pause"])
    assert sandbox.spec.sysctls == config.sysctls
    assert oci["linux"]["resources"]["cpu"] == {"shares": 522, "quota": 50_000, "period": 100_000}
    assert oci["linux"]["resources"]["memory"]["limit"] == 96 << 20
    network = {"type": "network", "path": str(sandbox.spec.namespaces.net)}
    assert network in oci["linux"]["namespaces"]
    assert network in member.spec.oci["linux"]["namespaces"]
    for notes, kind in ((oci["annotations"], "sandbox"), (member.spec.oci["annotations"], "container")):
        assert notes["io.kubernetes.cri.container-type"] == notes["io.kubernetes.cri-o.ContainerType"] == kind
        assert notes["io.kubernetes.cri.sandbox-id"] == notes["io.kubernetes.cri-o.SandboxID"] == sandbox.id
    assert oci["annotations"]["io.kubernetes.cri.sandbox-log-directory"] == "/var/log/pods/x"
    assert oci["annotations"]["io.kubernetes.cri.sandbox-memory"] == str(64 << 20)
    assert oci["annotations"]["io.kubernetes.cri.sandbox-cpu-quota"] == "50000"
    assert member.spec.oci["annotations"]["io.kubernetes.cri.container-name"] == "app"
    assert sandbox.spec.cgroup == "", "it names no cgroup: nothing may be done to one that it shares"


async def test_a_pod_that_asks_for_nothing_is_not_limited(core: Services, world: World) -> None:
    sandbox, _ = await running(core, world)
    assert sandbox.spec.oci is not None
    assert not {"cpu", "memory"} & sandbox.spec.oci["linux"]["resources"].keys()


async def test_the_pods_own_cgroup(core: Services, world: World) -> None:
    name = f"/cri-bridge-test-{world.root.name}"
    sandbox = await core.sandboxes.run(pod(cgroup_parent=name), "")
    try:
        assert world.backend.sandboxes[sandbox.id].spec.cgroup == name
    finally:
        await core.sandboxes.remove(sandbox.id)
        cgroups.remove(name)


async def test_new_limits_of_the_pod_reach_what_its_containers_live_in(core: Services, world: World) -> None:
    sandbox, _ = await running(core, world, pod(resources=Resources(cpu_shares=512), overhead=Resources(memory_limit_in_bytes=32 << 20)))
    await core.resources.update_sandbox(sandbox.id, None, Resources(memory_limit_in_bytes=64 << 20))
    assert [change["memory"]["limit"] for change in sandbox.updates] == [96 << 20], "with the overhead, and only what changes"
    assert "cpu" not in sandbox.updates[0]
    await core.resources.update_sandbox(sandbox.id, None, Resources(memory_limit_in_bytes=64 << 20))
    assert len(sandbox.updates) == 1, "what is in force already costs nothing"
    before = core.store.sandbox(sandbox.id)
    world.backend.faults.broken.add("update_sandbox")
    with pytest.raises(Unsupported, match=r"^resources: its size is fixed"):
        await core.resources.update_sandbox(sandbox.id, None, Resources(cpu_shares=1024))
    world.backend.faults.broken.clear()
    assert len(sandbox.updates) == 1
    assert core.store.sandbox(sandbox.id) is before, "what is refused is not recorded"


@pytest.mark.parametrize("oom", [False, True])
async def test_its_death_is_the_pods_and_its_containers(core: Services, world: World, oom: bool) -> None:
    sandbox, member = await running(core, world)
    sandbox.die(oom=oom)
    await core.live.containers[member.id].exited.wait()
    ended = core.containers.find(member.id)
    assert (ended.state, ended.exit_code, ended.reason) == (ContainerState.EXITED, 137, "OOMKilled" if oom else "Error")
    await not_ready(core, sandbox.id)
    with pytest.raises(IllegalTransition, match="not ready"):
        await core.containers.create(sandbox.id, container("late"))
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_wait_that_fails_is_no_reason_to_miss_an_end(core: Services, world: World) -> None:
    world.backend.faults.broken.add("wait")
    sandbox, member = await running(core, world)
    await anyio.wait_all_tasks_blocked()
    world.backend.containers[member.id].exit(7)
    sandbox.die(members=False)
    world.backend.faults.broken.clear()
    with anyio.fail_after(20):
        await core.live.containers[member.id].exited.wait()
    assert core.containers.find(member.id).exit_code == 7
    await not_ready(core, sandbox.id)
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_container_whose_backend_is_silent_dies_with_its_pod(core: Services, world: World) -> None:
    sandbox, member = await running(core, world)
    sandbox.die(members=False)
    await core.live.containers[member.id].exited.wait()
    ended = core.containers.find(member.id)
    assert (ended.exit_code, ended.reason) == (137, "SandboxDied")
    assert core.sandboxes.find(sandbox.id).state is SandboxState.STOPPED


async def test_a_pod_is_adopted_and_its_death_noticed(world: World) -> None:
    async with world.started() as core:
        sandbox, member = await running(core, world)
    async with world.started() as core:
        await core.recovery.run()
        assert core.sandboxes.find(sandbox.id).state is SandboxState.READY
        sandbox.die()
        await core.live.containers[member.id].exited.wait()
        assert core.containers.find(member.id).exit_code == 137
        await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_death_while_the_server_was_away(world: World) -> None:
    async with world.started() as core:
        sandbox, member = await running(core, world)
    sandbox.die()
    async with world.started() as core:
        await core.recovery.run()
        await core.live.containers[member.id].exited.wait()
        await not_ready(core, sandbox.id)
        await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_statistics_come_from_the_backend(core: Services, world: World) -> None:
    sandbox, member = await running(core, world)
    member.usage = CgroupStats(time.time_ns(), cpu_ns=7, memory=Memory(5, 4, 3, 2, 1))
    (usage,) = (await core.stats.sandbox(sandbox.id)).containers
    assert usage.cgroup == member.usage
    assert (await core.stats.container(member.id)).cgroup == member.usage


async def test_another_containers_pid_namespace_goes_by_its_name(core: Services, world: World) -> None:
    sandbox, member = await running(core, world)
    target = ContainerSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.TARGET, target_id=member.id))
    made = await core.containers.create(sandbox.id, container("debug", security=target))
    namespaces = world.backend.containers[made.id].spec.oci["linux"]["namespaces"]
    assert {"type": "pid", "path": f"{CONTAINER_PID_NAMESPACE}{member.id}"} in namespaces
    without(world, Ability.TARGET_PID)
    with pytest.raises(Unsupported, match=r"target_id: .*its kernel is its own"):
        await core.containers.create(sandbox.id, container("debug2", security=target))


@pytest.mark.parametrize(
    ("ability", "config", "field"),
    [
        (
            Ability.HOST_NETWORK,
            pod(security=SandboxSecurity(namespaces=NamespaceOptions(NamespaceMode.NODE, NamespaceMode.CONTAINER))),
            "network",
        ),
        (Ability.HOST_NAMESPACES, pod(security=SandboxSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.NODE))), "pid"),
        (
            Ability.HOST_NAMESPACES,
            pod(security=SandboxSecurity(namespaces=dataclasses.replace(PRIVATE_PID, ipc=NamespaceMode.NODE))),
            "ipc",
        ),
        (Ability.SYSCTLS, pod(sysctls={"net.ipv4.ip_forward": "1"}), "sysctls"),
        (
            Ability.SECCOMP,
            pod(security=SandboxSecurity(namespaces=PRIVATE_PID, seccomp=SecurityProfile(ProfileType.LOCALHOST, "x"))),
            "seccomp",
        ),
    ],
)
async def test_what_it_cannot_do_is_refused(core: Services, world: World, ability: Ability, config: PodConfig, field: str) -> None:
    without(world, ability)
    with pytest.raises(Unsupported, match=f"{field}: .*its kernel is its own"):
        await core.sandboxes.run(config, "")
    assert world.leftovers() == []


@pytest.mark.parametrize(
    ("ability", "changes", "field"),
    [
        (Ability.DEVICES, {"devices": (DeviceRequest("/dev/null", "/dev/null"),)}, "config.devices"),
        (
            Ability.MOUNT_PROPAGATION,
            {"mounts": (MountRequest("/x", "/tmp", propagation=MountPropagation.BIDIRECTIONAL),)},
            r"config.mounts\[0\].propagation",
        ),
        (
            Ability.APPARMOR,
            {"security": ContainerSecurity(namespaces=PRIVATE_PID, apparmor=SecurityProfile(ProfileType.LOCALHOST, "x"))},
            "config.linux.security_context.apparmor",
        ),
    ],
)
async def test_what_its_containers_cannot_have_is_refused(
    core: Services, world: World, ability: Ability, changes: dict[str, Any], field: str
) -> None:
    without(world, ability)
    sandbox = await core.sandboxes.run(pod(), "")
    with pytest.raises(Unsupported, match=f"{field}: .*its kernel is its own"):
        await core.containers.create(sandbox.id, container(**changes))


async def test_a_pod_without_a_pause_program(world: World) -> None:
    world.settings["pause_rootfs"] = None
    async with world.started() as core:
        with pytest.raises(Unsupported, match="static pause binary"):
            await core.sandboxes.run(pod(), "")
    assert world.leftovers() == []
