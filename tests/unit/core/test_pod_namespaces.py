"""Which namespaces may be asked for: each refusal names its field, and what a mapping means for ids and sysctls."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bridge.core import pod_namespaces, spec_mounts
from bridge.core.entities import Sandbox, User
from bridge.core.model import (
    ContainerConfig,
    ContainerSecurity,
    IDMapping,
    MountPropagation,
    MountRequest,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    SandboxSecurity,
    UserNamespace,
)
from bridge.errors import BridgeError, InvalidRequest, Unsupported
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support
from bridge.testing.fakes import FakeBackend
from tests.unit.core import spec_cases

POD, NODE, CONTAINER, TARGET = NamespaceMode.POD, NamespaceMode.NODE, NamespaceMode.CONTAINER, NamespaceMode.TARGET
ONE = IDMapping(host_id=100000, container_id=0, length=65536)
GROUPS = IDMapping(host_id=300000, container_id=0, length=1000)
MAPPED = UserNamespace(POD, (ONE,), (GROUPS,))
PREFIX = "config.linux.security_context.namespace_options"
USER = f"{PREFIX}.userns_options"


def pod(user: UserNamespace | None = MAPPED, *, sysctls: dict[str, str] | None = None, **options: Any) -> PodConfig:
    namespaces = NamespaceOptions(**{"pid": CONTAINER, "user": user, **options})
    return PodConfig(PodMetadata("web", "uid", "default"), sysctls=sysctls or {}, security=SandboxSecurity(namespaces=namespaces))


def sandbox(config: PodConfig | None = None) -> Sandbox:
    return dataclasses.replace(spec_cases.sandbox(), config=config or pod())


def backend(*missing: Ability) -> FakeBackend:
    made = FakeBackend()
    abilities = {each: Feature(Support.UNSUPPORTED if each in missing else Support.SUPPORTED, "as tried") for each in Ability}
    made.features = RuntimeFeatures("fake 1", "/fake", abilities)
    return made


def check(config: PodConfig, *missing: Ability, fault: str = "") -> None:
    pod_namespaces.check_pod(config, backend(*missing), fault)


def test_a_pod_with_one_mapping_of_each() -> None:
    check(pod())
    assert pod_namespaces.root_ids(pod()) == (100000, 300000)


def test_the_nodes_user_namespace_needs_nothing() -> None:
    for user in (None, UserNamespace(NODE)):
        check(pod(user), Ability.USER_NAMESPACES, fault="no")
        assert pod_namespaces.root_ids(pod(user)) is None
        assert pod_namespaces.oci_mappings(pod(user)) == {}


@pytest.mark.parametrize("kind", ["uids", "gids"])
@pytest.mark.parametrize(
    ("mappings", "field"),
    [
        ((), ""),
        ((ONE, IDMapping(200000, 65536, 65536)), ""),
        ((ONE, ONE), ""),
        ((dataclasses.replace(ONE, container_id=1),), "[0].container_id"),
        ((dataclasses.replace(ONE, length=0),), "[0].length"),
        ((dataclasses.replace(ONE, host_id=0),), "[0].host_id"),
        ((IDMapping(2**32 - 10, 0, 10),), "[0].length"),
        ((IDMapping(1, 0, 2**32 - 1),), "[0].length"),
    ],
)
def test_mappings_that_are_refused(kind: str, mappings: tuple[IDMapping, ...], field: str) -> None:
    changes: dict[str, Any] = {kind: mappings}
    with pytest.raises(InvalidRequest) as caught:
        check(pod(dataclasses.replace(MAPPED, **changes)))
    assert caught.value.field == f"{USER}.{kind}{field}"


def test_the_widest_mapping() -> None:
    widest = (IDMapping(1, 0, 2**32 - 2),)
    check(pod(UserNamespace(POD, widest, widest)))


@pytest.mark.parametrize("kind", ["network", "pid", "ipc"])
def test_a_user_namespace_with_a_namespace_of_the_node_is_refused(kind: str) -> None:
    changes: dict[str, Any] = {kind: NODE}
    with pytest.raises(InvalidRequest) as caught:
        check(pod(**changes))
    assert caught.value.field == f"{PREFIX}.{kind}"
    check(pod(None, **changes))


def test_what_handler_or_node_can_not_do() -> None:
    with pytest.raises(Unsupported, match=rf"{USER}: .*handler.*as tried"):
        check(pod(), Ability.USER_NAMESPACES)
    with pytest.raises(Unsupported, match=rf"{USER}: /images: EINVAL"):
        check(pod(), fault="/images: EINVAL")
    with pytest.raises(Unsupported, match=r"\.pid: "):
        check(pod(None, pid=POD), Ability.SHARED_PID)


@pytest.mark.parametrize(
    ("sysctls", "options"),
    [
        ({"net.ipv4.ip_forward": "1"}, {"network": NODE}),
        ({"kernel.domainname": "x"}, {"network": NODE}),
        ({"kernel.shmmax": "1"}, {"ipc": NODE}),
        ({"fs.mqueue.msg_max": "1"}, {"ipc": NODE}),
        ({"kernel.panic": "1"}, {}),
        ({"vm.overcommit_memory": "1"}, {}),
    ],
)
def test_sysctls_are_refused_before_anything_is_made(sysctls: dict[str, str], options: dict[str, NamespaceMode]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(pod(None, sysctls=sysctls, **options))
    assert caught.value.field == f"config.linux.sysctls[{next(iter(sysctls))}]"


@pytest.mark.parametrize(
    ("of_pod", "wanted", "field"),
    [
        ({"network": POD}, {"network": NODE}, f"{PREFIX}.network"),
        ({"pid": CONTAINER}, {"pid": NODE}, f"{PREFIX}.pid"),
        ({"pid": POD}, {"pid": NODE}, f"{PREFIX}.pid"),
        ({"ipc": POD}, {"ipc": NODE}, f"{PREFIX}.ipc"),
        ({}, {"network": CONTAINER}, f"{PREFIX}.network"),
        ({}, {"ipc": TARGET}, f"{PREFIX}.ipc"),
        ({"user": MAPPED}, {"user": UserNamespace(NODE)}, USER),
        ({"user": MAPPED}, {"user": dataclasses.replace(MAPPED, uids=(GROUPS,))}, USER),
        ({"user": None}, {"user": MAPPED}, USER),
    ],
)
def test_containers_that_contradict_their_pod(of_pod: dict[str, Any], wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pod_namespaces.check_container(container(**wanted), sandbox(pod(of_pod.pop("user", None), **of_pod)))
    assert caught.value.field == field


def container(**options: Any) -> ContainerConfig:
    return spec_cases.config(security=ContainerSecurity(namespaces=NamespaceOptions(**options)))


@pytest.mark.parametrize("mode", [POD, NODE])
def test_unset_means_what_the_pod_has(mode: NamespaceMode) -> None:
    pod_namespaces.check_container(container(), sandbox(pod(None, network=mode, pid=mode, ipc=mode)))
    pod_namespaces.check_container(container(), sandbox())
    pod_namespaces.check_container(container(user=MAPPED), sandbox())
    pod_namespaces.check_container(container(user=UserNamespace(NODE)), sandbox(pod(None)))


def test_ids_beyond_the_mapping_are_refused() -> None:
    pod_namespaces.check_user(User(65535, 999, (999,)), sandbox())
    pod_namespaces.check_user(User(70000, 70000), sandbox(pod(None)))
    for user, name in ((User(65536, 0), "run_as_user"), (User(0, 1000), "run_as_group"), (User(0, 0, (1000,)), "supplemental_groups")):
        with pytest.raises(InvalidRequest) as caught:
            pod_namespaces.check_user(user, sandbox())
        assert caught.value.field == f"config.linux.security_context.{name}"


def test_who_may_ping() -> None:
    key = "net.ipv4.ping_group_range"
    assert pod_namespaces.pod_sysctls(pod(None)) == {key: "0 2147483647"}
    assert pod_namespaces.pod_sysctls(pod(None, network=NODE)) == {}
    assert pod_namespaces.pod_sysctls(pod()) == {key: "300000 300999"}, "the pod's groups, as the host counts them"
    assert pod_namespaces.pod_sysctls(pod(sysctls={key: "5 999"})) == {key: "300005 300999"}
    assert pod_namespaces.pod_sysctls(pod(sysctls={"net/ipv4/ping_group_range": "1 0"})) == {"net/ipv4/ping_group_range": "1 0"}
    high = dataclasses.replace(MAPPED, gids=(IDMapping(2**31, 0, 65536),))
    assert pod_namespaces.pod_sysctls(pod(high)) == {}, "the kernel knows no such group there"
    for bad in ("0 1000", "all", "0", "-1 5"):
        with pytest.raises(InvalidRequest) as caught:
            pod_namespaces.pod_sysctls(pod(sysctls={key: bad}))
        assert caught.value.field == f"config.linux.sysctls[{key}]"


def test_every_refusal_is_the_clients_to_mend() -> None:
    with pytest.raises(BridgeError, match="TARGET is for containers only"):
        check(pod(None, pid=TARGET))


def test_nothing_spreads_from_a_user_namespace() -> None:
    asked = MountRequest("/data", "/vol", propagation=MountPropagation.BIDIRECTIONAL)
    pod_namespaces.check_container(spec_cases.config(mounts=(asked,)), sandbox(pod(None)))
    with pytest.raises(InvalidRequest) as caught:
        pod_namespaces.check_container(spec_cases.config(mounts=(MountRequest("/a", "/b"), asked)), sandbox())
    assert caught.value.field == "config.mounts[1].propagation"


def test_a_small_namespace_has_no_group_of_terminals() -> None:
    small = UserNamespace(POD, (ONE,), (dataclasses.replace(GROUPS, length=5),))
    for user, there in ((small, False), (MAPPED, True), (None, True)):
        (terminals,) = [each for each in _mounts(sandbox(pod(user))) if each["destination"] == "/dev/pts"]
        assert ("gid=5" in terminals["options"]) is there


def _mounts(of: Sandbox) -> list[dict[str, Any]]:
    return spec_mounts.build(spec_cases.inputs(sandbox=of))[0]
