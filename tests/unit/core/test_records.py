"""Records survive the way to the database and back, also across versions of this program."""

import json
from dataclasses import dataclass, replace

import pytest

from bridge.core import records
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState, User
from bridge.core.model import (
    ContainerConfig,
    ContainerMetadata,
    DNSConfig,
    IDMapping,
    ImageSpec,
    MountPropagation,
    MountRequest,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    Resources,
    SandboxSecurity,
    UserNamespace,
)
from bridge.errors import CorruptData
from bridge.ports.network import PortMapping

SANDBOX = Sandbox(
    id="s" * 64,
    config=PodConfig(
        PodMetadata("a", "b", "c", 3),
        hostname="host",
        dns=DNSConfig(("1.1.1.1",), ("x.y",)),
        port_mappings=(PortMapping(80, 8080, "udp", "127.0.0.1"),),
        labels={"k": "v"},
        resources=Resources(hugepage_limits=(("2MB", 4),), unified={"memory.high": "1"}),
        security=SandboxSecurity(
            namespaces=NamespaceOptions(pid=NamespaceMode.NODE, user=UserNamespace(NamespaceMode.POD, (IDMapping(1, 0, 9),))), run_as_user=0
        ),
    ),
    handler="runc",
    runtime_handler="",
    state=SandboxState.READY,
    created_at=5,
    boot_id="b",
    ips=("10.0.0.1", "fd00::1"),
    attachment={"network": "n", "data": {"list": [1, {"x": None}]}},
    namespaces={"net": "/run/x"},
)
CONTAINER = Container(
    id="c",
    sandbox_id="s",
    config=ContainerConfig(
        ContainerMetadata("app", 1),
        ImageSpec("busybox"),
        command=("a", "b"),
        envs=(("K", "V"),),
        mounts=(MountRequest("/a", "/b", propagation=MountPropagation.BIDIRECTIONAL),),
    ),
    image_id="sha256:1",
    image_ref="x",
    state=ContainerState.EXITED,
    created_at=1,
    boot_id="b",
    user=User(1, 2, (3, 4)),
    exit_code=137,
)


@pytest.mark.parametrize("record", [SANDBOX, CONTAINER, replace(SANDBOX, attachment=None, backend={"v": 1})])
def test_round_trip(record: Sandbox | Container) -> None:
    assert records.loads(type(record), records.dumps(record)) == record


def test_defaults_take_no_room() -> None:
    assert "hostname" not in records.dumps(replace(SANDBOX, config=PodConfig(PodMetadata("a", "b", "c"))))


def test_fields_of_a_newer_version_are_ignored_and_missing_ones_take_their_default() -> None:
    stored = json.loads(records.dumps(CONTAINER))
    stored["from_the_future"] = 1
    del stored["exit_code"]
    assert records.loads(Container, json.dumps(stored)) == replace(CONTAINER, exit_code=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": "x"}', '{"state": "no such state"}'])
def test_what_does_not_fit_is_corrupt(text: str) -> None:
    with pytest.raises(CorruptData, match="Container record is unreadable"):
        records.loads(Container, text)


def test_what_can_not_be_stored_is_a_bug_that_shows_at_once() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: object

    with pytest.raises(TypeError, match="set can't be stored"):
        records.dumps(Odd({1}))
