"""OCI artifacts on the real daemon, as a kubelet has them: pulled by PullImage, mounted in containers, told by every image RPC."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.testing.pushes import File, Pusher
from tests.integration.daemon_fixtures import handler, kubelet, node, own_node
from tests.integration.daemon_node import Kubelet, namespaces
from tests.integration.registry_node import REGISTRY, registry
from tests.integration.test_daemon_image_volumes import fails, refused_in_use, volume

__all__ = ["handler", "kubelet", "node", "own_node"]
needs_registry = pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry")
pytestmark = [pytest.mark.root, pytest.mark.timeout(120), needs_registry]

KIND = "application/x.test.v1"
FILES = [File("artifact.txt", b"hello artifact"), File("run.sh", b"#!/bin/sh\necho run\n"), File("sub/2", b"2"), File("sub/deep/3", b"3")]


@pytest.fixture
def name(kubelet: Kubelet, tmp_path: Path) -> Iterator[str]:
    """The reference of an artifact in a registry, whose end takes the server's idle connections along."""
    del kubelet
    with registry(tmp_path / "registry") as host:
        pusher = Pusher(host, "test/artifact")
        pusher.artifact("1", FILES, kind=KIND)
        yield f"{pusher.name}:1"


@pytest.fixture
async def artifact(kubelet: Kubelet, name: str) -> AsyncIterator[str]:
    """The artifact's id, while it is pulled."""
    spec = pb.ImageSpec(image=name)
    yield (await kubelet.cri.image.pull_image(pb.PullImageRequest(image=spec))).image_ref
    await kubelet.clean()
    await kubelet.cri.image.remove_image(pb.RemoveImageRequest(image=spec))
    assert (await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=spec))).image is None


async def test_every_rpc_tells_the_same(kubelet: Kubelet, name: str, artifact: str) -> None:
    cri = kubelet.cri
    digest = f"{name.rpartition(':')[0]}@{artifact}"
    for called in (name, artifact, artifact[7:20], digest):
        status = await cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=called), verbose=True))
        assert status.image is not None
        found = status.image
        assert (found.id, found.repo_tags, found.repo_digests, found.pinned) == (artifact, [name], [digest], False)
        assert (found.username, found.uid, found.size > 0) == ("", None, True)
        assert json.loads(status.info["info"])["imageSpec"]["artifactType"] == KIND
        listed = await cri.image.list_images(pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=called))))
        assert listed.images == [found]
    assert found in (await cri.image.list_images()).images
    stored = (await cri.admin.list_images()).images
    assert [image.artifact_type for image in stored if image.id == artifact] == [KIND]
    inspected = await cri.admin.inspect_image(admin.InspectImageRequest(reference=name))
    assert (inspected.config, len(inspected.layers)) == (b"{}", len(FILES))


async def test_files_and_parts_in_a_container(kubelet: Kubelet, name: str, artifact: str) -> None:
    ids = [pb.IdMapping(host_id=200000, container_id=0, length=65536)]
    options = namespaces()
    options.userns_options = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=ids, gids=ids)
    for own in (namespaces(), options):
        pod = await kubelet.run(options=own)
        places = [volume("/all", name), volume("/part", artifact, "sub"), volume("/file", name, "artifact.txt")]
        container = await kubelet.started(pod, options=own, mounts=places)
        assert await kubelet.output(container, "cat /all/artifact.txt /part/2 /part/deep/3 /file") == "hello artifact23hello artifact"
        assert await kubelet.output(container, "stat -c %a:%u:%g /all/run.sh /file /part") == "644:0:0\n644:0:0\n755:0:0"
        for path in ("/all/artifact.txt", "/all/new", "/part/2", "/file"):
            assert "Read-only file system" in await fails(kubelet, container, f"echo > {path}"), path
        assert "Permission denied" in await fails(kubelet, container, "/all/run.sh")
        mounted = (await kubelet.status(container)).mounts
        assert [mount.image and mount.image.image for mount in mounted] == [artifact] * 3
        await refused_in_use(kubelet.cri, name, container)
        await refused_in_use(kubelet.cri, artifact, container)


async def test_refusals(kubelet: Kubelet, name: str, artifact: str) -> None:
    pod = await kubelet.run()
    for called in (name, artifact):
        words = f"config.image.image: .*is an OCI artifact of type '{KIND}', not an image: it can be mounted"
        with pytest.raises(CriError, match=words) as caught:
            await kubelet.create(pod, image=pb.ImageSpec(image=called))
        assert caught.value.code is Status.INVALID_ARGUMENT
    with pytest.raises(CriError, match=r"ImageVolumeMountFailed: .*'absent' does not exist") as caught:
        await kubelet.create(pod, mounts=[volume("/a", name, "absent")])
    assert caught.value.code is Status.UNKNOWN
    assert (await kubelet.cri.runtime.list_containers()).containers == []
