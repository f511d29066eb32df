"""Mounts: the standard set, what replaces what, order, propagation and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bridge.core.model import ContainerSecurity, MountPropagation, MountRequest, NamespaceMode, NamespaceOptions
from bridge.core.spec import build_container
from bridge.errors import InvalidRequest
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, inputs, sandbox

STANDARD = [
    "/proc",
    "/dev",
    "/sys",
    "/dev/pts",
    "/dev/mqueue",
    "/dev/shm",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/sys/fs/cgroup",
]


def _mounts(*requests: MountRequest, **changes: Any) -> dict[str, dict[str, Any]]:
    spec = build_container(inputs(config=config(mounts=requests), **changes), FACTS, SETTINGS)
    return {mount["destination"]: mount for mount in spec["mounts"]}


def test_standard_mounts() -> None:
    mounts = _mounts()
    assert list(mounts) == STANDARD
    assert "ro" in mounts["/sys"]["options"]
    assert "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert mounts["/dev/shm"]["source"] == "/run/s/shm"
    assert mounts["/etc/hosts"]["source"] == "/run/s/hosts"
    assert "rw" in mounts["/etc/hosts"]["options"]


def test_privileged_gets_writable_kernel_trees() -> None:
    spec = build_container(inputs(sandbox=sandbox(privileged=True), security=ContainerSecurity(privileged=True)), FACTS, SETTINGS)
    options = {mount["destination"]: mount["options"] for mount in spec["mounts"]}
    assert "rw" in options["/sys"]
    assert "rw" in options["/sys/fs/cgroup"]


def test_read_only_root_makes_the_pods_files_read_only() -> None:
    spec = build_container(inputs(security=ContainerSecurity(readonly_rootfs=True)), FACTS, SETTINGS)
    assert spec["root"]["readonly"] is True
    assert all("ro" in mount["options"] for mount in spec["mounts"] if mount["destination"].startswith("/etc/"))


def test_host_ipc_shares_the_hosts_memory() -> None:
    pod = sandbox()
    security = dataclasses.replace(pod.config.security, namespaces=NamespaceOptions(ipc=NamespaceMode.NODE))
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, security=security))
    assert _mounts(sandbox=pod)["/dev/shm"]["source"] == "/dev/shm"


def test_a_requested_mount_replaces_the_standard_one() -> None:
    mounts = _mounts(MountRequest("/etc/hosts", "/kubelet/hosts"), MountRequest("/dev/shm/", "/vol"))
    assert mounts["/etc/hosts"]["source"] == "/kubelet/hosts"
    assert mounts["/dev/shm"]["source"] == "/vol"
    assert len(mounts) == len(STANDARD)


def test_a_whole_kernel_tree_takes_its_branches_along() -> None:
    mounts = _mounts(MountRequest("/dev", "/dev"), MountRequest("/sys", "/sys"))
    assert [name for name in mounts if name.startswith(("/dev", "/sys"))] == ["/dev", "/sys"]
    assert "/etc/resolv.conf" in _mounts(MountRequest("/etc", "/vol"))


def test_parents_come_before_children_and_equals_keep_their_order() -> None:
    mounts = _mounts(
        MountRequest("/data/a/b", "/1"), MountRequest("/data/z", "/2"), MountRequest("/data", "/3"), MountRequest("/data/a", "/4")
    )
    assert [name for name in mounts if name.startswith("/data")] == ["/data", "/data/z", "/data/a", "/data/a/b"]


@pytest.mark.parametrize(
    ("path", "normal"), [("data", "/data"), ("/data/", "/data"), ("//data//x", "/data/x"), ("/../../etc/x", "/etc/x"), ("/a/./b/..", "/a")]
)
def test_destinations_are_made_absolute_and_normal(path: str, normal: str) -> None:
    assert normal in _mounts(MountRequest(path, "/vol"))


@pytest.mark.parametrize(
    ("propagation", "option", "root"),
    [
        (MountPropagation.PRIVATE, "rprivate", None),
        (MountPropagation.HOST_TO_CONTAINER, "rslave", "rslave"),
        (MountPropagation.BIDIRECTIONAL, "rshared", "rshared"),
    ],
)
def test_propagation(propagation: MountPropagation, option: str, root: str | None) -> None:
    request = MountRequest("/data", "/vol", propagation=propagation)
    spec = build_container(inputs(config=config(mounts=(MountRequest("/other", "/vol"), request))), FACTS, SETTINGS)
    mount = next(mount for mount in spec["mounts"] if mount["destination"] == "/data")
    assert mount["options"] == ["rbind", option, "rw"]
    assert spec["linux"].get("rootfsPropagation") == root


def test_read_only_and_recursive_read_only() -> None:
    assert _mounts(MountRequest("/data", "/vol", readonly=True))["/data"]["options"][-1] == "ro"
    recursive = MountRequest("/data", "/vol", readonly=True, recursive_read_only=True)
    assert _mounts(recursive)["/data"]["options"][-1] == "rro"
    with pytest.raises(InvalidRequest, match="recursive_read_only"):
        _mounts(dataclasses.replace(recursive, readonly=False))
    with pytest.raises(InvalidRequest, match="recursive_read_only"):
        _mounts(dataclasses.replace(recursive, propagation=MountPropagation.BIDIRECTIONAL))


def test_mounts_from_elsewhere_replace_standard_ones_and_yield_to_requested_ones() -> None:
    added = ({"destination": "/etc/hosts", "type": "bind", "source": "/ours"}, {"destination": "/data", "type": "bind", "source": "/ours"})
    mounts = _mounts(MountRequest("/data", "/vol"), added_mounts=added)
    assert mounts["/etc/hosts"]["source"] == "/ours"
    assert mounts["/data"]["source"] == "/vol"


def test_mount_options() -> None:
    assert _mounts(MountRequest("/data", "/vol", mount_options=("noexec", "nodev")))["/data"]["options"][-2:] == ["noexec", "nodev"]
    with pytest.raises(InvalidRequest, match=r"config.mounts\[0\].mount_options\[1\]"):
        _mounts(MountRequest("/data", "/vol", mount_options=("noexec", "idmap")))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (MountRequest("", "/vol"), "config.mounts[0].container_path"),
        (MountRequest("/", "/vol"), "config.mounts[0].container_path"),
        (MountRequest("/a/..", "/vol"), "config.mounts[0].container_path"),
        (MountRequest("/a\0", "/vol"), "config.mounts[0].container_path"),
        (MountRequest("/a", ""), "config.mounts[0].host_path"),
        (MountRequest("/a", "vol"), "config.mounts[0].host_path"),
    ],
)
def test_refusals_name_the_field(request_: MountRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _mounts(request_)
    assert caught.value.field == field
