"""Image volumes on the real daemon, as a kubelet asks for them: seen from inside containers, in status, and when images are removed."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError, connect
from bridge.host import mounts
from bridge.testing.images import Entry, Layout, busybox_layer, directory, symlink, tar
from tests.integration.daemon_fixtures import handler, kubelet, node, own_node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node", "own_node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

MODELS, EMPTY = "localhost/models:1", "localhost/empty:1"
HOST_TO_CONTAINER, BIDIRECTIONAL = pb.MountPropagation.PROPAGATION_HOST_TO_CONTAINER, pb.MountPropagation.PROPAGATION_BIDIRECTIONAL


async def import_volumes(cri: CriClient, path: Path) -> dict[str, pb.Image]:
    """Import the images that the tests mount; by name."""
    upper = tar([Entry("data/.wh.gone"), Entry("data/new", b"new", uid=7, gid=8), Entry("opaque/.wh..wh..opq"), Entry("opaque/new", b"")])
    lower = tar([
        directory("data"), Entry("data/file", b"content"), Entry("data/gone", b""), directory("opaque"), Entry("opaque/old", b""),
        directory("etc"), Entry("etc/passwd", b"of the image"), symlink("out", "/etc"), symlink("up", "../../../../../../etc"),
    ])  # fmt: skip
    with Layout(path) as layout:
        layout.image(MODELS, [lower, await run_sync(busybox_layer, Path("/bin/busybox")), upper])
        layout.image(EMPTY, [])
    await cri.admin.import_image(admin.ImportImageRequest(path=str(path)))
    await run_sync(shutil.rmtree, path)
    found = (await cri.image.list_images()).images
    return {name: image for image in found for name in image.repo_tags}


@pytest.fixture
async def images(kubelet: Kubelet) -> AsyncIterator[dict[str, pb.Image]]:
    yield await import_volumes(kubelet.cri, kubelet.node.root / "volume-layout")
    await kubelet.clean()
    for name in (MODELS, EMPTY):
        await kubelet.cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def volume(place: str, image: str, sub_path: str = "", **changes: object) -> pb.Mount:
    spec = pb.ImageSpec(image=image, user_specified_image="models:1")
    return pb.Mount(container_path=place, image=spec, image_sub_path=sub_path, **{"readonly": True, **changes})  # type: ignore[arg-type]


async def fails(kubelet: Kubelet, container: str, command: str) -> str:
    """What a command that must fail says."""
    answer = await kubelet.exec(container, command)
    assert answer.exit_code != 0, answer
    return answer.stderr.decode()


async def test_images_and_parts_of_them(kubelet: Kubelet, images: dict[str, pb.Image]) -> None:
    models = images[MODELS]
    pod = await kubelet.run()
    container = await kubelet.started(
        pod,
        mounts=[
            volume("/all", models.id),
            volume("/part", MODELS, "data"),
            volume("/file", models.repo_digests[0], "data/file"),
            volume("/out", models.id, "out"),
            volume("/up", models.id, "up", recursive_read_only=True),
            volume("/none", EMPTY),
            volume("/noexec", models.id, "bin", mount_options=["noexec", "nosuid"]),
            volume("/all/data", EMPTY),
        ],
    )
    assert await kubelet.output(container, "cd /part; echo *; cat file new /file") == "file new\ncontentnewcontent"
    assert await kubelet.output(container, "ls -A /none /all/data /all/opaque") == "/all/data:\n\n/all/opaque:\nnew\n\n/none:"
    for place in ("/out/passwd", "/up/passwd", "/all/etc/passwd"):  # replaced by the upper layer's, and never the node's
        assert await kubelet.output(container, f"wc -l < {place}; head -n 1 {place}") == "3\nroot:x:0:0:root:/root:/bin/sh"
    for path in ("/all/x", "/part/file", "/file", "/none/x", "/up/x", "/noexec/x"):
        assert "Read-only file system" in await fails(kubelet, container, f"echo > {path}"), path
    assert await kubelet.output(container, "/all/bin/echo run") == "run"
    assert "Permission denied" in await fails(kubelet, container, "/noexec/echo run")
    mounted = await kubelet.output(container, "grep ' /noexec ' /proc/mounts")
    assert {"ro", "noexec", "nosuid"} <= set(mounted.split()[3].split(","))


async def test_status_tells_the_image_by_its_id(kubelet: Kubelet, images: dict[str, pb.Image]) -> None:
    models = images[MODELS]
    pod = await kubelet.run()
    container = await kubelet.create(pod, mounts=[volume("/a", MODELS), volume("/b", models.id[7:19], "data")])
    for mount, part in zip((await kubelet.status(container)).mounts, ("", "data"), strict=True):
        assert mount.image == pb.ImageSpec(image=models.id, image_ref=models.id, user_specified_image="models:1")
        assert (mount.host_path, mount.image_sub_path, mount.readonly) == ("", part, True)


async def test_refusals(kubelet: Kubelet, images: dict[str, pb.Image]) -> None:
    pod = await kubelet.run()
    other = pb.Mount(container_path="/tmp", host_path="/tmp", readonly=True)
    image, part = "ImageVolumeMountFailed: config.mounts[1].image.image: ", "ImageVolumeMountFailed: config.mounts[1].image_sub_path: "
    for mount, code, words in (
        (volume("/a", "localhost/absent:1"), Status.UNKNOWN, f"{image}image 'localhost/absent:1' is not in the store"),
        (volume("/a", "sha256:" + "0" * 64), Status.UNKNOWN, f"{image}image 'sha256:000"),
        (volume("/a", "Not A Name"), Status.UNKNOWN, image),
        (volume("/a", MODELS, "absent"), Status.UNKNOWN, "[1]: can't mount sub-path 'absent' of image 'models:1'"),
        (volume("/a", MODELS, "data/gone"), Status.UNKNOWN, "'data/gone' does not exist in the image"),
        (volume("/a", MODELS, "data/../../etc"), Status.UNKNOWN, part),
        (volume("/a", MODELS, "/etc"), Status.UNKNOWN, part),
        (volume("/a", MODELS, readonly=False), Status.INVALID_ARGUMENT, "config.mounts[1].readonly: must be set"),
        (volume("/a", MODELS, propagation=HOST_TO_CONTAINER), Status.INVALID_ARGUMENT, "config.mounts[1].propagation"),
        (volume("/a", MODELS, propagation=BIDIRECTIONAL), Status.INVALID_ARGUMENT, "config.mounts[1].propagation"),
        (volume("/a", MODELS, host_path="/etc"), Status.INVALID_ARGUMENT, "config.mounts[1].image: "),
        (volume("/a", ""), Status.INVALID_ARGUMENT, "config.mounts[1].image.image: must not be empty"),
        (volume("/a", MODELS, mount_options=["rw"]), Status.INVALID_ARGUMENT, "config.mounts[1].mount_options[0]: 'rw'"),
    ):  # fmt: skip
        with pytest.raises(CriError) as caught:
            await kubelet.create(pod, mounts=[other, mount])
        assert (caught.value.code, words in str(caught.value)) == (code, True), caught.value
    assert (await kubelet.cri.runtime.list_containers()).containers == []


async def test_a_privileged_container_can_not_write_to_what_others_share(kubelet: Kubelet, images: dict[str, pb.Image]) -> None:
    security = pb.LinuxSandboxSecurityContext(privileged=True, namespace_options=namespaces())
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.security_context = security
    pod = await kubelet.run(config=config)
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True, namespace_options=namespaces()))
    container = await kubelet.started(pod, mounts=[volume("/all", images[MODELS].id), volume("/part", MODELS, "data")], linux=linux)
    for place in ("/all/data", "/part"):
        top = "/all" if place.startswith("/all") else place
        await kubelet.exec(container, f"mount -o remount,bind,rw {top}; mount -o remount,rw {top}")
        assert "Read-only file system" in await fails(kubelet, container, f"echo changed > {place}/file")
    assert await kubelet.output(container, "cat /part/file") == "content"


async def test_owners_are_those_that_the_pods_user_namespace_sees(kubelet: Kubelet, images: dict[str, pb.Image]) -> None:
    ids = [pb.IdMapping(host_id=200000, container_id=0, length=65536)]
    options = namespaces()
    options.userns_options = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=ids, gids=ids)
    pod = await kubelet.run(options=options)
    places = [volume("/all", MODELS), volume("/part", MODELS, "data"), volume("/file", MODELS, "data/file"), volume("/none", EMPTY)]
    container = await kubelet.started(pod, options=options, mounts=places)
    assert await kubelet.output(container, "cat /proc/self/uid_map | tr -s ' '") == "0 200000 65536"
    seen = await kubelet.output(container, "stat -c %u:%g /all /all/data /all/etc/group /part /part/file /part/new /file /none")
    assert seen.split() == [*["0:0"] * 5, "7:8", *["0:0"] * 2]
    assert "Read-only file system" in await fails(kubelet, container, "echo > /part/file")
    left = [each.target for each in mounts.below(mounts.read_mountinfo(), kubelet.node.root / "run") if container in each.target]
    assert [Path(each).name for each in left] == ["rootfs"], "neither a view stays, nor what the container has mounts of its own for"


async def test_a_pull_for_an_unknown_handler(kubelet: Kubelet) -> None:
    for name, code in (("kata", Status.NOT_FOUND), (kubelet.handler, Status.UNKNOWN)):  # the latter gets as far as the registry
        spec = pb.ImageSpec(image="127.0.0.1:1/absent:1", runtime_handler=name)
        with pytest.raises(CriError, match="no runtime handler 'kata'" if name == "kata" else "RegistryUnavailable") as caught:
            await kubelet.cri.image.pull_image(pb.PullImageRequest(image=spec))
        assert caught.value.code is code


async def refused_in_use(cri: CriClient, image: str, container: str) -> None:
    with pytest.raises(CriError, match=f"used by container.*{container}") as caught:
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))
    assert caught.value.code is Status.FAILED_PRECONDITION


@pytest.mark.parametrize("handler", ["runc"])
async def test_the_image_stays_and_the_mount_goes_also_over_a_crash(own_node: DaemonNode, handler: str) -> None:
    async with connect(own_node.socket) as cri:
        kubelet = Kubelet(own_node, cri, handler)
        images = await import_volumes(cri, own_node.root / "volume-layout")
        pod = await kubelet.run()
        container = await kubelet.started(pod, mounts=[volume("/v", MODELS, "data")])
        await refused_in_use(cri, MODELS, container)
    own_node.kill()
    await own_node.restart()
    async with connect(own_node.socket) as cri:
        kubelet.cri = cri
        assert await kubelet.output(container, "cat /v/file") == "content"
        assert (await kubelet.status(container)).mounts[0].image == pb.ImageSpec(
            image=images[MODELS].id, image_ref=images[MODELS].id, user_specified_image="models:1"
        )
        await refused_in_use(cri, images[MODELS].id, container)
        pid = (await kubelet.info(container))["pid"]
    own_node.kill()
    os.kill(pid, signal.SIGKILL)  # its exit is seen by the next server
    await own_node.restart()
    async with connect(own_node.socket) as cri:
        kubelet.cri = cri
        assert (await kubelet.exited(container)).exit_code == 137
        await refused_in_use(cri, MODELS, container)
        await kubelet.remove(container)
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=MODELS)))
        status = await cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=MODELS)))
        assert status.image is None
        await kubelet.clean()
