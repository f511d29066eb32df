"""The handlers in Status as a kubelet reads them: by name, the default under the empty name too, with what pods on each may ask for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api.runtime import NodeView, RuntimeRpcs
from bridge.core.services import Services
from bridge.ports.handlers import HandlerState
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support
from bridge.testing.fake_handlers import FakeHandlers
from tests.component.conftest import World

pytestmark = pytest.mark.root


def features(*lacking: Ability) -> RuntimeFeatures:
    found = {ability: Feature(Support.UNSUPPORTED if ability in lacking else Support.SUPPORTED) for ability in Ability}
    return RuntimeFeatures("1", "/bin/x", found)


STATES = (
    HandlerState("fake", "p", features()),
    HandlerState("old", "p", features(Ability.RECURSIVE_READ_ONLY, Ability.USER_NAMESPACES)),
    HandlerState("gone", "p", None, "its binary is missing"),
)


async def test_the_nodes_pod_ranges_reach_the_network(core: Services, world: World) -> None:
    node = NodeView(systemd_cgroups=False, mount_copies=False, health=lambda: ("", ""), details=lambda: {})
    rpcs = RuntimeRpcs(core, node, cast("Any", None))
    for config in (None, pb.RuntimeConfig(), pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/24,fd00::/64"))):
        assert await rpcs.update_runtime_config(pb.UpdateRuntimeConfigRequest(runtime_config=config)) == pb.UpdateRuntimeConfigResponse()
    assert world.network.ranges == ["", "", "10.0.0.0/24,fd00::/64"]


async def answered(core: Services, *, mount_copies: bool) -> dict[str, tuple[bool, bool]]:
    node = NodeView(systemd_cgroups=False, mount_copies=mount_copies, health=lambda: ("", ""), details=lambda: {})
    status = await RuntimeRpcs(core, node, cast("Any", None)).status(pb.StatusRequest())
    assert status.features == pb.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True)
    told = {}
    for each in status.runtime_handlers:
        assert each.features is not None
        told[each.name] = (each.features.recursive_read_only_mounts, each.features.user_namespaces)
    assert len(told) == len(status.runtime_handlers)
    return told


async def test_each_handler_with_its_own_features(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHandlers, "states", lambda self: STATES)
    assert await answered(core, mount_copies=False) == {"fake": (True, True), "old": (False, False), "": (True, True)}, (
        "one that is disabled is not offered"
    )
    assert (await answered(core, mount_copies=True))["old"] == (True, False), "this kernel makes such mounts for any runtime"
    monkeypatch.setattr(FakeHandlers, "default", "old")
    assert (await answered(core, mount_copies=False))[""] == (False, False), "the default's"


async def test_what_the_image_store_can_not_map_no_handler_can(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHandlers, "states", lambda self: STATES)
    monkeypatch.setattr(world.images, "id_mapping_fault", "its file system allows no id-mapped mounts")
    assert await answered(core, mount_copies=False) == {"fake": (True, False), "old": (False, False), "": (True, False)}


async def test_a_default_that_is_disabled_is_not_under_the_empty_name(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHandlers, "states", lambda self: STATES)
    monkeypatch.setattr(FakeHandlers, "default", "gone")
    assert set(await answered(core, mount_copies=False)) == {"fake", "old"}
