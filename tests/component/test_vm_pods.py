"""What a backend whose sandbox is a virtual machine gets from core, and what core refuses for it."""

from __future__ import annotations

import dataclasses
import logging
import signal
from typing import Any

import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import (
    ContainerSecurity,
    MountPropagation,
    MountRequest,
    NamespaceMode,
    NamespaceOptions,
    SandboxSecurity,
)
from bridge.core.services import Services
from bridge.errors import RuntimeFailed, TimedOut, Unsupported
from bridge.host import mounts
from bridge.ports.runtime import Ability, Feature, SandboxKind, Support
from bridge.testing.fakes import FakeSandbox
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root
_OWN_KERNEL = (Ability.HOST_NETWORK, Ability.HOST_NAMESPACES, Ability.HOST_DEVICES, Ability.MOUNT_PROPAGATION)


@pytest.fixture(autouse=True)
def vm(world: World) -> None:
    world.backend.sandbox_kind = SandboxKind.VM
    missing = {ability: Feature(Support.UNSUPPORTED, "a guest has its own kernel") for ability in _OWN_KERNEL}
    features = world.backend.features
    world.backend.features = dataclasses.replace(features, abilities={**features.abilities, **missing})
    world.spec_settings = dataclasses.replace(world.spec_settings, allowed_annotations=("io.katacontainers.a",))


async def test_the_network_is_there_before_the_backend_is_asked(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    create = world.backend.create_sandbox

    async def watched(spec):
        seen.append(len(world.network.attached))
        return await create(spec)

    monkeypatch.setattr(world.backend, "create_sandbox", watched)
    sandbox = await core.sandboxes.run(pod(sysctls={"net.ipv4.ip_forward": "1"}), "")
    assert seen == [1]
    made = world.backend.sandboxes[sandbox.id].spec
    assert made.ips == sandbox.ips == ("10.99.0.2",)
    assert made.sysctls == {"net.ipv4.ip_forward": "1"}
    assert made.oci is not None
    assert made.namespaces.net is not None


async def test_its_directory_is_a_shared_mount_as_long_as_it_lives(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    directory = str(world.backend.sandboxes[sandbox.id].spec.state_dir)
    mounted = mounts.read_mountinfo()
    holding = max(
        (m for m in mounted if directory == m.target or directory.startswith(m.target.rstrip("/") + "/")), key=lambda m: len(m.target)
    )
    assert any(tag.startswith("shared:") for tag in holding.propagation)
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_failed_boot_leaves_nothing(world: World, core: Services) -> None:
    world.backend.faults.fail_on.add("create_sandbox")
    with pytest.raises(RuntimeFailed):
        await core.sandboxes.run(pod(), "")
    assert world.leftovers() == []


async def test_a_container_that_no_signal_reaches_ends_with_the_machine(
    world: World, core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    stuck = world.backend.containers[made.id]
    stuck.ignored = frozenset({signal.SIGTERM, signal.SIGKILL})
    stop = FakeSandbox.stop

    async def power_off(self: FakeSandbox) -> None:
        stuck.exit(137, 9)
        await stop(self)

    monkeypatch.setattr(FakeSandbox, "stop", power_off)
    await core.sandboxes.stop(sandbox.id)
    assert core.sandboxes.find(sandbox.id).state is SandboxState.STOPPED
    ended = core.containers.find(made.id)
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, 137)


async def test_a_container_that_outlives_even_that_is_an_error(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    world.backend.containers[made.id].ignored = frozenset({signal.SIGTERM, signal.SIGKILL})
    with pytest.raises(TimedOut, match="SIGKILL"):
        await core.sandboxes.stop(sandbox.id)
    world.backend.containers[made.id].ignored = frozenset()
    await core.sandboxes.stop(sandbox.id)


@pytest.mark.parametrize("field", ["network", "pid", "ipc"])
async def test_the_nodes_namespaces_are_refused(world: World, core: Services, field: str) -> None:
    chosen: dict[str, Any] = {"pid": NamespaceMode.CONTAINER, field: NamespaceMode.NODE}
    options = NamespaceOptions(**chosen)
    with pytest.raises(Unsupported, match=rf"namespace_options\.{field}: this handler can't use the node's \(a guest has its own kernel\)"):
        await core.sandboxes.run(pod(security=SandboxSecurity(namespaces=options)), "")
    assert world.leftovers() == []


@pytest.mark.parametrize("propagation", [MountPropagation.HOST_TO_CONTAINER, MountPropagation.BIDIRECTIONAL])
async def test_propagation_is_refused(core: Services, tmp_path, propagation: MountPropagation) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    wanted = container(mounts=(MountRequest("/data", str(tmp_path), propagation=propagation),))
    with pytest.raises(Unsupported, match=r"config\.mounts\[0\]\.propagation: handler 'fake' can't do PROPAGATION_"):
        await core.containers.create(sandbox.id, wanted)


async def test_a_privileged_container_gets_none_of_the_nodes_devices(world: World, core: Services) -> None:
    namespaces = NamespaceOptions(pid=NamespaceMode.CONTAINER)
    sandbox = await core.sandboxes.run(pod(security=SandboxSecurity(namespaces=namespaces, privileged=True)), "")
    made = await core.containers.create(sandbox.id, container(security=ContainerSecurity(namespaces=namespaces, privileged=True)))
    assert world.backend.containers[made.id].spec.oci["linux"].get("devices", []) == []


async def test_withheld_annotations_are_named(core: Services, caplog: pytest.LogCaptureFixture) -> None:
    annotations = {"io.katacontainers.config.hypervisor.path": "/x", "io.katacontainers.a": "1", "mine": "2"}
    with caplog.at_level(logging.WARNING):
        await core.sandboxes.run(pod(annotations=annotations), "")
    assert "doesn't allow the annotations io.katacontainers.config.hypervisor.path" in caplog.text
