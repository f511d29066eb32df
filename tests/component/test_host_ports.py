"""Host ports over the whole core: a second pod never gets the same one, and it is free once the first was stopped."""

from __future__ import annotations

import anyio
import pytest

from bridge.core.model import NamespaceMode, NamespaceOptions, SandboxSecurity
from bridge.core.services import Services
from bridge.errors import AlreadyExists, BridgeError, InvalidRequest, NetworkFailed
from bridge.ports.network import PortMapping
from tests.component.conftest import World, pod

pytestmark = pytest.mark.root
WEB = (PortMapping(9, 0), PortMapping(80, 8080))


async def test_a_held_port_is_refused_by_the_holders_name_and_freed_by_stop(world: World, core: Services) -> None:
    first = await core.sandboxes.run(pod("first", port_mappings=WEB), "")
    holder = rf"belongs to pod default/first \(sandbox {first.id[:13]}\) as tcp port 8080 on every address"
    told = rf"^config\.port_mappings\[0\]\.host_port: tcp port 8080 on 127\.0\.0\.1 {holder}$"
    with pytest.raises(AlreadyExists, match=told):
        await core.sandboxes.run(pod("second", port_mappings=(PortMapping(90, 8080, "tcp", "127.0.0.1"),)), "")
    with pytest.raises(AlreadyExists, match=rf"tcp port 8080 on every address belongs to pod default/first \(sandbox {first.id[:13]}\)$"):
        await core.sandboxes.run(pod("second", port_mappings=WEB), "")
    assert (await core.sandboxes.run(pod("first", port_mappings=WEB), "")).id == first.id, "a retry is no rival"
    assert [each.id for each in core.sandboxes.list()] == [first.id]
    await core.sandboxes.run(pod("udp", port_mappings=(PortMapping(80, 8080, "udp"),)), "")
    await core.sandboxes.stop(first.id)
    await core.sandboxes.run(pod("second", port_mappings=WEB), "")


async def test_a_pod_that_died_holds_its_ports_until_it_is_stopped(core: Services) -> None:
    shared = SandboxSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.POD))
    first = await core.sandboxes.run(pod("first", port_mappings=WEB, security=shared), "")
    await core.store.apply_sandbox(first.id, "died", pid=0)
    with pytest.raises(AlreadyExists, match="default/first"):
        await core.sandboxes.run(pod("second", port_mappings=WEB), "")
    await core.sandboxes.stop(first.id)
    await core.sandboxes.run(pod("second", port_mappings=WEB), "")


async def test_of_two_at_once_one_gets_it(core: Services) -> None:
    refused: list[BridgeError] = []

    async def run(name: str) -> None:
        try:
            await core.sandboxes.run(pod(name, port_mappings=WEB), "")
        except AlreadyExists as exc:
            refused.append(exc)

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c"):
            group.start_soon(run, name)
    assert (len(core.sandboxes.list()), len(refused)) == (1, 2)


async def test_a_failed_pod_holds_nothing(world: World, core: Services) -> None:
    world.network.faults.fail_on.add("add")
    with pytest.raises(NetworkFailed):
        await core.sandboxes.run(pod("first", port_mappings=WEB), "")
    await core.sandboxes.run(pod("second", port_mappings=WEB), "")


async def test_after_a_restart_the_same_ports_are_held(world: World) -> None:
    async with world.started() as core:
        await core.sandboxes.run(pod("first", port_mappings=WEB), "")
    async with world.started() as core:
        with pytest.raises(AlreadyExists, match="default/first"):
            await core.sandboxes.run(pod("second", port_mappings=WEB), "")
        await core.recovery.run()
        with pytest.raises(AlreadyExists, match="default/first"):
            await core.sandboxes.run(pod("second", port_mappings=WEB), "")


async def test_a_broken_network_plugin_does_not_keep_a_port(world: World, core: Services) -> None:
    first = await core.sandboxes.run(pod("first", port_mappings=WEB), "")
    world.network.faults.fail_on.add("delete")
    await core.sandboxes.stop(first.id)
    await core.sandboxes.run(pod("second", port_mappings=WEB), "")


async def test_in_the_hosts_network_ports_are_only_declared(world: World, core: Services) -> None:
    host = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER))
    await core.sandboxes.run(pod("first", port_mappings=WEB), "")
    await core.sandboxes.run(pod("second", port_mappings=WEB, security=host), "")


async def test_one_pod_can_not_lead_a_port_to_two_places(core: Services) -> None:
    twice = (PortMapping(80, 8080), PortMapping(81, 8080, "tcp", "127.0.0.1"))
    with pytest.raises(InvalidRequest, match=r"container port 81, but port_mappings\[0\] already leads it to 80") as caught:
        await core.sandboxes.run(pod(port_mappings=twice), "")
    assert caught.value.field == "config.port_mappings[1].host_port"
    await core.sandboxes.run(pod(port_mappings=(*WEB, PortMapping(80, 8080, "tcp", "127.0.0.1"))), "")


async def test_mappings_without_a_host_port_exclude_nobody(core: Services) -> None:
    for name in ("first", "second"):
        await core.sandboxes.run(pod(name, port_mappings=(PortMapping(80, 0),)), "")
