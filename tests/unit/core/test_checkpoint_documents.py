"""The documents of a checkpoint: those that others read, and theirs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bridge.core import checkpoint_documents
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.errors import CorruptData, HostError

POD = Sandbox(
    id="p" * 64,
    config=PodConfig(PodMetadata("web", "uid", "default")),
    handler="runc",
    runtime_handler="",
    state=SandboxState.READY,
    created_at=1,
    boot_id="boot",
)
CONTAINER = Container(
    id="c" * 64,
    sandbox_id=POD.id,
    config=ContainerConfig(ContainerMetadata("app", 2), ImageSpec("busybox"), labels={"a": "b"}, annotations={"c": "d"}),
    image_id="sha256:" + "1" * 64,
    image_ref="docker.io/library/busybox@sha256:" + "2" * 64,
    state=ContainerState.RUNNING,
    created_at=1_700_000_000_000_000_005,
    boot_id="boot",
)
CRIO_CONFIG = {
    "id": "4" * 64,
    "name": "k8s_counter_pod_default_uid_0",
    "rootfsImage": "quay.io/adrianreber/counter:latest",
    "rootfsImageRef": "5" * 64,
    "rootfsImageName": "quay.io/adrianreber/counter:latest",
    "runtime": "runc",
    "createdTime": "2023-01-01T00:00:00Z",
    "checkpointedTime": "2023-01-01T00:01:00Z",
    "restoredTime": "0001-01-01T00:00:00Z",
    "restored": False,
}
CRIO_SPEC = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/counter", "-v"]},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/etc/hosts", "type": "bind", "source": "/var/x", "options": ["rbind"]},
        {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]},
        {"destination": "/more", "type": "none", "source": "/srv", "options": ["bind", "ro"]},
    ],
}


def written(directory: Path, config: object, spec: object) -> Path:
    (directory / "config.dump").write_text(json.dumps(config))
    (directory / "spec.dump").write_text(json.dumps(spec))
    return directory


def test_what_others_look_for_is_there() -> None:
    found = checkpoint_documents.documents(CONTAINER, POD, {"process": {"args": ["sh"]}, "annotations": {"own": "1"}})
    config, spec = found["config.dump"], found["spec.dump"]
    assert config.keys() - CRIO_CONFIG.keys() == {"rootfsImageID", "rootfsImageDigest", "createNetNS"}
    assert CRIO_CONFIG.keys() <= config.keys()
    assert config["createNetNS"] is False
    assert (config["id"], config["name"], config["runtime"]) == (CONTAINER.id, "k8s_app_web_default_uid_2", "runc")
    assert (config["rootfsImage"], config["rootfsImageRef"], config["rootfsImageName"]) == ("busybox", "1" * 64, CONTAINER.image_ref)
    assert config["createdTime"] == "2023-11-14T22:13:20.000000005Z"
    assert (config["restored"], config["restoredTime"]) == (False, "0001-01-01T00:00:00Z")
    assert json.loads(spec["annotations"]["io.kubernetes.cri-o.Annotations"]) == {"c": "d"}
    assert json.loads(spec["annotations"]["io.kubernetes.cri-o.Labels"]) == {"a": "b"}
    assert (spec["annotations"]["own"], spec["process"]) == ("1", {"args": ["sh"]})


def test_a_restored_container_says_so() -> None:
    again = dataclasses.replace(CONTAINER, checkpoint="/x", started_at=1_700_000_000_000_000_000)
    config = checkpoint_documents.documents(again, POD, {})["config.dump"]
    assert (config["restored"], config["restoredTime"]) == (True, "2023-11-14T22:13:20.000000000Z")


def test_mounts_of_the_node_with_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o640)
    mounts = [
        {"destination": "/dir", "type": "bind", "source": str(tmp_path)},
        {"destination": "/file", "type": "bind", "source": str(tmp_path / "file")},
        {"destination": "/etc/hosts", "type": "bind", "source": "/absent"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    found = checkpoint_documents.documents(CONTAINER, POD, {"mounts": mounts})["bind.mounts"]
    assert [(each["destination"], each["file_type"]) for each in found] == [("/dir", "directory"), ("/file", "file")]
    assert found[1]["permissions"] == 0o640
    with pytest.raises(HostError, match="/absent"):
        checkpoint_documents.documents(CONTAINER, POD, {"mounts": [{**mounts[2], "destination": "/x"}]})


def test_what_cri_o_wrote_is_understood(tmp_path: Path) -> None:
    found = checkpoint_documents.read(written(tmp_path, CRIO_CONFIG, CRIO_SPEC))
    assert found.images == ["sha256:" + "5" * 64, "quay.io/adrianreber/counter:latest"]
    assert (found.argv, found.mounts) == (["/counter", "-v"], ["/data", "/more"])


def test_what_containerd_wrote_is_understood(tmp_path: Path) -> None:
    reference = "docker.io/library/nginx@sha256:" + "6" * 64
    config = {"id": "x", "rootfsImageRef": reference, "rootfsImageName": "docker.io/library/nginx:1"}
    assert checkpoint_documents.read(written(tmp_path, config, {})).images == [reference, "docker.io/library/nginx:1"]


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        ([], {}),
        ({}, "x"),
        ({}, {"process": {"args": 1}}),
        ({}, {"mounts": [{"type": "bind"}]}),
        ({}, {"mounts": ["x"]}),
        ({}, {"mounts": 1}),
    ],
)
def test_damaged_documents(tmp_path: Path, config: object, spec: object) -> None:
    with pytest.raises(CorruptData, match="checkpoint"):
        checkpoint_documents.read(written(tmp_path, config, spec))


def test_missing_and_odd_files(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match=r"no config\.dump"):
        checkpoint_documents.read(tmp_path)
    written(tmp_path, CRIO_CONFIG, CRIO_SPEC)
    (tmp_path / "spec.dump").unlink()
    (tmp_path / "spec.dump").symlink_to("config.dump")
    with pytest.raises(CorruptData, match=r"spec\.dump can't be read"):
        checkpoint_documents.read(tmp_path)
