"""Archives as podman, CRI-O and containerd write them, field by field, restored over a fake runtime.

Sources: an archive of podman 4.3.1; CRI-O internal/lib/checkpoint.go; containerd internal/cri/server/container_checkpoint_linux.go;
checkpointctl lib/metadata.go. Processes are a fake's; the rest is as those engines have it.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge.core.model import ImageSpec, MountRequest
from bridge.core.services import Services
from bridge.errors import CorruptData, InvalidRequest
from bridge.testing.fake_stores import IMAGE
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root

DIGITS = IMAGE.id.removeprefix("sha256:")
ID = "4b2e6e7ee21c87bf82ba51127adce21f3e86d2dfcbb1e59c5f6464a52c43ed90"
PROCESSES = {"checkpoint/inventory.img": b"\x19CVT", "checkpoint/pages-1.img": b"", "checkpoint/processes": b"theirs"}
LOGS = {"dump.log": b"(00.000001) Version: 4.2.1\n", "stats-dump": b"@Y\x10U\x063\tW$\x00\x00\x00"}
OWN = ("/etc/hosts", "/etc/hostname", "/dev/shm", "/run/.containerenv", "/etc/resolv.conf")


def bind(place: str, kind: str = "bind") -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": f"/var/lib/theirs{place}", "options": ["bind", "rprivate"]}


def spec(*places: str, annotations: Mapping[str, str] = {}) -> dict[str, Any]:
    kernel = [
        {"destination": place, "type": kind, "source": kind} for place, kind in (("/proc", "proc"), ("/dev", "tmpfs"), ("/sys", "sysfs"))
    ]
    return {
        "ociVersion": "1.0.2-dev",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "count"], "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "/var/lib/theirs/merged"},
        "hostname": "theirs",
        "mounts": [*kernel, *(bind(place) for place in places), {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}],
        "annotations": dict(annotations),
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "network", "path": "/run/netns/x"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
            ],
            "maskedPaths": ["/proc/kcore", "/sys/dev/block"],
        },
    }


def podman() -> dict[str, bytes]:
    config = {
        **{"id": ID, "name": "cnt", "lockID": 0, "CreateCommand": ["podman", "run", "busybox"], "RawImageName": "busybox"},
        **{"idMappingsOptions": {"HostUIDMapping": True, "HostGIDMapping": True, "UIDMap": None, "GIDMap": None}, "Dependencies": None},
        **{"rootfsImageID": DIGITS, "rootfsImageName": "docker.io/library/busybox:latest", "shmSize": 65536000, "labelopts": ["disable"]},
        **{"ShmDir": "/var/lib/theirs/shm", "staticDir": "/var/lib/theirs", "mounts": ["/var/lib/theirs/shm"], "createNetNS": False},
        **{"command": ["/bin/sh", "-c", "count"], "stopSignal": 15, "stopTimeout": 10, "createdTime": "2026-11-22T17:01:39.89964782Z"},
        **{"cgroupManager": "cgroupfs", "cgroupParent": "/libpod_parent", "logDriver": "k8s-file", "runtime": "runc", "umask": "0022"},
    }
    notes = {"io.container.manager": "libpod", "io.kubernetes.cri-o.Created": "2026-11-22T17:01:39Z", "io.kubernetes.cri-o.TTY": "false"}
    return {
        **PROCESSES,
        **{"artifacts/": b"", "config.dump": json.dumps(config).encode(), "spec.dump": json.dumps(spec(*OWN, annotations=notes)).encode()},
        **{"network.status": b"null", "stats-dump": LOGS["stats-dump"], "ctr.log": b"2026 stdout F count 1\n"},
        **{"devshm-checkpoint.tar": archive({}), "rootfs-diff.tar": archive({"n": b"1\n"}), "deleted.files": b'[\n  "/bin/date"\n]'},
    }


def crio() -> dict[str, bytes]:
    config = {
        **{"id": ID, "name": "k8s_app_web_default_uid_0", "rootfsImage": "docker.io/library/busybox:latest", "rootfsImageRef": DIGITS},
        **{"rootfsImageName": IMAGE.repo_digests[0], "runtime": "runc", "createdTime": "2023-01-01T00:00:00Z", "restored": False},
        **{"checkpointedTime": "2023-01-01T00:01:00Z", "restoredTime": "0001-01-01T00:00:00Z"},
    }
    notes = {
        "io.kubernetes.cri-o.Annotations": json.dumps({"io.kubernetes.container.hash": "1"}),
        "io.kubernetes.cri-o.Labels": json.dumps({"io.kubernetes.container.name": "app"}),
        "io.kubernetes.cri-o.LogPath": "/var/log/pods/app.log",
    }
    found = spec(*OWN, "/data", "/etc/passwd", "/run/secrets", annotations=notes)
    binds = [{"source": "/srv/data", "destination": "/data", "file_type": "directory", "permissions": 493}]
    return {
        **{**PROCESSES, **LOGS, "config.dump": json.dumps(config).encode(), "spec.dump": json.dumps(found).encode()},
        **{"bind.mounts": json.dumps(binds).encode(), "app.log": b"", "rootfs-diff.tar": archive({"n": b"1\n"}), "deleted.files": b"null"},
    }


def containerd() -> dict[str, bytes]:
    config = {
        **{"id": ID, "name": "app", "rootfsImage": "docker.io/library/busybox:latest", "rootfsImageRef": IMAGE.id, "restored": False},
        **{
            "rootfsImageName": "docker.io/library/busybox:latest",
            "runtime": "io.containerd.runc.v2",
            "createdTime": "2026-01-01T00:00:00Z",
        },
        **{"checkpointedTime": "2026-01-01T00:01:00Z", "restoredTime": "0001-01-01T00:00:00Z"},
    }
    status = {"id": ID, "metadata": {"name": "app"}, "state": 1, "image": {"image": "docker.io/library/busybox:latest"}, "log_path": "/x"}
    found = spec("/etc/hosts", "/data", annotations={"io.kubernetes.cri.container-name": "app"})
    return {
        **{**PROCESSES, **LOGS, "config.dump": json.dumps(config).encode(), "spec.dump": json.dumps(found).encode()},
        **{"status.dump": json.dumps(status).encode(), "status": b'{"Version":"v1"}', "container.log": b""},
        "rootfs-diff.tar": gzip.compress(archive({"bin/.wh.date": b"", "n": b"1\n"})),
    }


def archive(files: Mapping[str, bytes]) -> bytes:
    """With names as those engines write them, "checkpoint/" among them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in sorted({f"{each.partition('/')[0]}/" for each in files if "/" in each}):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(member)
        for name, content in files.items():
            if not name.endswith("/"):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize(("engine", "mounts"), [(podman, ()), (crio, ("/data",)), (containerd, ("/data",))])
async def test_what_another_engine_wrote_is_restored(
    world: World, core: Services, tmp_path: Path, engine: Any, mounts: tuple[str, ...]
) -> None:
    path, sandbox = tmp_path / "theirs.tar", (await core.sandboxes.run(pod(), "")).id
    path.write_bytes(archive(engine()))
    wanted = container("again", image=ImageSpec(str(path)), command=())
    if mounts:
        before = world.leftovers()
        with pytest.raises(InvalidRequest, match=r"config\.mounts: .*/data$"):
            await core.containers.create(sandbox, wanted)
        assert world.leftovers() == before
    asked = tuple(MountRequest(container_path=place, host_path=str(tmp_path)) for place in mounts)
    made = await core.containers.create(sandbox, container("again", image=ImageSpec(str(path)), command=(), mounts=asked))
    await core.containers.start(made.id)
    fake = world.backend.containers[made.id]
    assert (made.image_id, fake.restored, world.images.pulled) == (IMAGE.id, "theirs", [])
    oci = fake.spec.oci
    assert oci["process"]["args"] == ["/bin/sh", "-c", "count"]
    places = [mount["destination"] for mount in oci["mounts"]]
    theirs = [mount["destination"] for mount in json.loads(engine()["spec.dump"])["mounts"] if mount["type"] == "bind"]
    assert [place for place in theirs if places.count(place) != 1] == [], "each mount of the checkpoint has one in its place"
    assert not [mount for mount in oci["mounts"] if "/var/lib/theirs" in mount["source"]], "an archive mounts nothing of the node"
    assert {"/proc/kcore", "/sys/dev/block"} <= set(oci["linux"]["maskedPaths"])
    assert len(set(oci["linux"]["maskedPaths"])) == len(oci["linux"]["maskedPaths"])
    for mount in oci["mounts"]:
        if mount["destination"] in ("/run/.containerenv", "/run/secrets"):
            assert Path(mount["source"]).is_dir() is (mount["destination"] == "/run/secrets")
            assert "ro" in mount["options"]
    await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


@pytest.mark.parametrize("missing", ["config.dump", "spec.dump"])
async def test_an_archive_without_its_documents(world: World, core: Services, tmp_path: Path, missing: str) -> None:
    path, sandbox = tmp_path / "theirs.tar", (await core.sandboxes.run(pod(), "")).id
    path.write_bytes(archive({name: content for name, content in crio().items() if name != missing}))
    before = world.leftovers()
    with pytest.raises(CorruptData, match=missing):
        await core.containers.create(sandbox, container("again", image=ImageSpec(str(path))))
    assert world.leftovers() == before
