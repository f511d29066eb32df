"""Devices of a container: the host's nodes behind a request, whose they are, and how they stand in the OCI spec."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from bridge.aio import Supervisor
from bridge.core import device_nodes, spec_devices
from bridge.core.entities import Sandbox, User
from bridge.core.model import ContainerSecurity, DeviceRequest, NamespaceMode, UserNamespace
from bridge.core.settings import CoreSettings
from bridge.core.spec_inputs import DeviceNode
from bridge.errors import HostError, InvalidRequest
from bridge.host.lookups import Lookups
from tests.unit.core.spec_cases import config, sandbox

SETTINGS = CoreSettings(run_dir=Path("/run/x"), pause_rootfs=None, pause_argv=(), boot_id="b")
USER = User(uid=1000, gid=2000)


async def found(*requests: DeviceRequest, user: User = USER, privileged: bool = False, **settings: object) -> dict[str, DeviceNode]:
    chosen = dataclasses.replace(SETTINGS, **settings)  # type: ignore[arg-type]
    wanted = config(devices=requests, security=ContainerSecurity(privileged=privileged))
    device_nodes.check(wanted)
    async with Supervisor() as supervisor:
        return {node.path: node for node in await device_nodes.find(wanted, user, chosen, Lookups(supervisor))}


async def test_a_node_keeps_numbers_mode_and_owner_of_the_host() -> None:
    status = os.stat("/dev/null")
    nodes = await found(DeviceRequest("/dev/nil", "/dev/null", "r"))
    mode = stat.S_IMODE(status.st_mode)
    assert nodes == {"/dev/nil": DeviceNode("/dev/nil", "c", 1, 3, mode, status.st_uid, status.st_gid, "r", "/dev/null")}


async def test_a_device_of_a_request_may_belong_to_the_containers_user() -> None:
    request = DeviceRequest("/dev/nil", "/dev/null", "r")
    extra = (DeviceRequest("/dev/zero", "/dev/zero"),)
    nodes = await found(request, device_ownership=True, additional_devices=extra)
    assert [(node.uid, node.gid) for node in nodes.values()] == [(0, 0), (1000, 2000)], "the operator's own stay as they are"
    root = await found(request, device_ownership=True, user=User())
    assert (root["/dev/nil"].uid, root["/dev/nil"].gid) == (0, 0)


async def test_of_two_for_one_path_the_request_counts() -> None:
    extra = (DeviceRequest("/dev/x", "/dev/zero"), DeviceRequest("/dev/y", "/dev/zero"))
    nodes = await found(DeviceRequest("/dev/x", "/dev/null"), additional_devices=extra)
    assert {path: node.minor for path, node in nodes.items()} == {"/dev/y": 5, "/dev/x": 3}


async def test_an_additional_device_that_is_gone_is_the_operators_fault() -> None:
    with pytest.raises(HostError, match=r"runtime.additional_devices: device /dev/gone does not exist"):
        await found(additional_devices=(DeviceRequest("/dev/gone", "/dev/gone"),))


async def test_directories_links_and_fifos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "dir" / "fifo")
    (tmp_path / "dir" / "link").symlink_to("/dev/null")
    nodes = await found(DeviceRequest("/dev/p", str(tmp_path / "fifo")), DeviceRequest("/dev/l", str(tmp_path / "link")))
    assert {path: (node.kind, node.major) for path, node in nodes.items()} == {"/dev/p": ("p", 0), "/dev/l": ("c", 1)}
    with pytest.raises(InvalidRequest, match="is not a device, nor is anything below it"):
        await found(DeviceRequest("/dev/d", str(tmp_path / "dir")))
    whole = await found(DeviceRequest("/dev/all/", "/dev/"))
    assert "/dev/all/null" in whole
    assert not [path for path in whole if path.startswith(("/dev/all/pts", "/dev/all/shm", "/dev/all/mqueue", "/dev/all/console"))]


async def test_a_privileged_container_gets_the_hosts(tmp_path: Path) -> None:
    nodes = await found(DeviceRequest("/dev/null", "/dev/zero", "r"), privileged=True)
    assert {"/dev/zero", "/dev/full", "/dev/tty"} <= set(nodes)
    assert nodes["/dev/null"].minor == 5, "a request replaces the host's node of that place"
    assert not [path for path in nodes if path.startswith(("/dev/pts/", "/dev/shm/", "/dev/mqueue/")) or path == "/dev/console"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (DeviceRequest("/dev/x", "/dev/null", ""), "permissions"),
        (DeviceRequest("/dev/x", "/dev/null", "rx"), "permissions"),
        (DeviceRequest("dev/x", "/dev/null"), "container_path"),
        (DeviceRequest("", "/dev/null"), "container_path"),
        (DeviceRequest("/dev/..", "/dev/null"), "container_path"),
        (DeviceRequest("/dev/x", "null"), "host_path"),
        (DeviceRequest("/dev/x", "/dev/nu\0ll"), "host_path"),
        (DeviceRequest("/dev/x", "/dev/absent"), "host_path"),
        (DeviceRequest("/dev/x", "/proc/version"), "host_path"),
    ],
)
async def test_what_is_no_device_is_refused_naming_the_field(request_: DeviceRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await found(DeviceRequest("/dev/nil", "/dev/null"), request_)
    assert caught.value.field == f"config.devices[1].{field}"


NODES = (
    DeviceNode("/dev/same", "c", 1, 3, 0o666, 0, 0, "rw", "/dev/same"),
    DeviceNode("/dev/other", "b", 8, 0, 0o660, 0, 6, "r", "/dev/sda"),
    DeviceNode("/dev/pipe", "p", 0, 0, 0o600, 1, 2, "rwm", "/dev/pipe"),
)


def in_user_namespace() -> Sandbox:
    pod = sandbox()
    spaces = dataclasses.replace(pod.config.security.namespaces, user=UserNamespace(NamespaceMode.POD))
    return dataclasses.replace(
        pod, config=dataclasses.replace(pod.config, security=dataclasses.replace(pod.config.security, namespaces=spaces))
    )


def test_nodes_and_rules_of_the_spec() -> None:
    assert spec_devices.nodes(NODES, sandbox()) == [
        {"path": "/dev/same", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0},
        {"path": "/dev/other", "type": "b", "major": 8, "minor": 0, "fileMode": 0o660, "uid": 0, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600, "uid": 1, "gid": 2},
    ]
    assert spec_devices.binds(NODES, sandbox()) == []
    assert spec_devices.rules(NODES, False) == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
    ]
    assert spec_devices.rules(NODES, True) == [{"allow": True, "access": "rwm"}]


def test_in_a_user_namespace_a_node_of_another_path_is_a_bind_mount() -> None:
    pod = in_user_namespace()
    assert [node["path"] for node in spec_devices.nodes(NODES, pod)] == ["/dev/same", "/dev/pipe"]
    (mount,) = spec_devices.binds(NODES, pod)
    assert (mount["source"], mount["destination"], "bind" in mount["options"]) == ("/dev/sda", "/dev/other", True)
