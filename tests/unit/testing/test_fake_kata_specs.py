"""What the stand-in for Kata's shim reads of a bundle, and what it takes out of a spec before the guest sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import NotFound
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.specs import Bundle, in_guest, load, resources


def bundle(annotations: dict[str, str] | None = None, **linux: Any) -> Bundle:
    spec = {
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "pod",
        "hooks": {"prestart": [{"path": "/bin/true"}]},
        "process": {"args": ["sh"], "apparmorProfile": "p", "selinuxLabel": "l"},
        "annotations": annotations or {},
        "linux": linux,
    }
    return Bundle(Path("/b"), spec)


@pytest.mark.parametrize(
    ("annotations", "is_sandbox"),
    [
        ({}, True),
        ({"io.kubernetes.cri.container-type": "sandbox"}, True),
        ({"io.kubernetes.cri.container-type": "container"}, False),
        ({"io.kubernetes.cri-o.ContainerType": "container"}, False),
        ({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri-o.ContainerType": "container"}, True),
    ],
)
def test_either_family_of_annotations_tells_a_sandbox(annotations: dict[str, str], is_sandbox: bool) -> None:
    assert bundle(annotations).is_sandbox is is_sandbox


def test_a_member_must_name_its_pod() -> None:
    assert bundle({"io.kubernetes.cri-o.SandboxID": "pod"}).sandbox_id == "pod"
    with pytest.raises(NotFound, match="sandbox ID"):
        assert bundle({"io.kubernetes.cri.container-type": "container"}).sandbox_id


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        ("/kubepods/pod7/cri-bridge-x", "/kubepods/pod7"),
        ("a-b.slice:cri-bridge:x", "/a.slice/a-b.slice"),
        ("", "/"),
    ],
)
def test_the_machine_is_in_the_pods_cgroup(path: str, parent: str) -> None:
    assert bundle(cgroupsPath=path).cgroup_parent == parent


def test_the_guest_gets_nothing_that_names_the_host() -> None:
    given = bundle(
        namespaces=[{"type": "network", "path": "/n"}, {"type": "pid", "path": "/p"}, {"type": "user"}, {"type": "ipc", "path": "/i"}],
        uidMappings=[{}],
        resources={"devices": [{}], "memory": {"limit": 5}, "cpu": {"cpus": "0", "shares": 2}},
        seccomp={"defaultAction": "x"},
    )
    spec = in_guest(given, cgroup="/kata_x/c", netns="/n", pause=None)
    assert spec["root"] == {"path": "/b/rootfs", "readonly": True}
    assert spec["process"] == {"args": ["sh"]}
    assert spec["hostname"] == "pod"
    assert "hooks" not in spec
    assert spec["linux"] == {
        "namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "pid"}, {"type": "network", "path": "/n"}],
        "cgroupsPath": "/kata_x/c",
        "resources": {"cpu": {"shares": 2}, "memory": {"limit": 5}},
        "seccomp": {"defaultAction": "x"},
    }


@pytest.mark.parametrize(
    ("asked", "got"), [({"type": "pid", "path": "/any"}, {"type": "pid", "path": "/proc/9/ns/pid"}), ({"type": "pid"}, {"type": "pid"})]
)
def test_a_member_shares_the_sandboxs_namespaces(asked: dict[str, str], got: dict[str, str]) -> None:
    spec = in_guest(bundle(namespaces=[asked]), cgroup="/c", netns="", pause=9)
    shared = [{"type": kind, "path": f"/proc/9/ns/{kind}"} for kind in ("ipc", "uts")]
    assert spec["linux"]["namespaces"] == [{"type": "mount"}, *shared, got, {"type": "network"}]
    assert "hostname" not in spec


def test_resources_without_anything_are_empty() -> None:
    assert resources({"devices": [{}], "cpu": {"mems": "0"}, "memory": None}) == {}


def test_a_bundle_is_read_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(bundle().spec))
    assert load(tmp_path).root == tmp_path / "rootfs"


def test_faults_are_what_the_file_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.fault("boot") is None
    monkeypatch.setenv(places.FAULTS_ENV, str(tmp_path / "faults.json"))
    assert places.fault("boot") is None
    (tmp_path / "faults.json").write_text('{"boot": "hangs"}')
    assert (places.fault("boot"), places.fault("start")) == ("hangs", None)


def test_members_find_their_pods_shim() -> None:
    assert places.shim_socket("ns", "a") == places.shim_socket("ns", "a")
    assert len({places.shim_socket("ns", "a"), places.shim_socket("other", "a"), places.shim_socket("ns", "b")}) == 3
