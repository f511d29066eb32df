"""The image service on the real daemon: one image from two registries is one image to every RPC; a damaged one is pulled again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError
from bridge.testing.images import Entry, Layout, busybox_layer, tar
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet
from tests.integration.registry_node import push, registry

__all__ = ["handler", "kubelet", "node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


async def status(cri: CriClient, name: str, verbose: bool = False) -> pb.ImageStatusResponse:
    return await cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=verbose))


async def pull(cri: CriClient, name: str) -> str:
    return (await cri.image.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image=name)))).image_ref


async def listed(cri: CriClient, name: str) -> list[pb.Image]:
    filter_ = pb.ImageFilter(image=pb.ImageSpec(image=name))
    return list((await cri.image.list_images(pb.ListImagesRequest(filter=filter_))).images)


async def test_an_image_is_one_whatever_it_is_called(kubelet: Kubelet, tmp_path: Path) -> None:
    cri = kubelet.cri
    with Layout(tmp_path / "layout") as layout:
        made = layout.image("app:1", [busybox_layer(Path("/bin/busybox")), tar([])], config={"User": "1000:5", "Labels": {"a": "b"}})
    with registry(tmp_path / "one") as one, registry(tmp_path / "two") as two:
        for host in (one, two):
            await push(tmp_path / "layout", "app:1", host, "team/app:1")
        tags, digests = [f"{host}/team/app:1" for host in (one, two)], [f"{host}/team/app@{made['digest']}" for host in (one, two)]
        names = [*tags, *digests, f"{tags[0]}@{made['digest']}"]
        refs = {await pull(cri, name) for name in names}
        (image_id,) = refs
        image = (await status(cri, image_id)).image
        assert image is not None
        assert (image.id, image.repo_tags, image.repo_digests) == (image_id, sorted(tags), sorted(digests))
        assert image.size > 1_900_000
        assert image.uid is not None
        assert (image.uid.value, image.username, image.pinned) == (1000, "", False)
        for name in [*names, image_id, image_id.removeprefix("sha256:"), image_id[7:19]]:
            assert (await status(cri, name)).image == image
            assert await listed(cri, name) == [image]
        info = json.loads((await status(cri, tags[0], verbose=True)).info["info"])
        assert info["imageSpec"]["config"]["Labels"] == {"a": "b"}
        assert len(info["chainIDs"]) == 2
        await _containers_agree(kubelet, image, [*names, image_id])
        for name in tags:
            await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))
        assert (await status(cri, image_id)).image is not None  # it was also pulled by digest
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image_id)))
        for name in [*names, image_id]:
            assert (await status(cri, name)).image is None
            assert await listed(cri, name) == []


async def _containers_agree(kubelet: Kubelet, image: pb.Image, names: list[str]) -> None:
    """A container by any name of the image has the same ids in its status and in lists; the image can't go meanwhile."""
    cri = kubelet.cri
    pod = await kubelet.run()
    for number, name in enumerate(names):
        spec = pb.ImageSpec(image=name, user_specified_image="team/app:1")
        container = await kubelet.create(pod, name=f"app{number}", image=spec)
        shown = await kubelet.status(container)
        assert (shown.image_id, shown.image_ref) == (image.id, image.repo_digests[0])
        (entry,) = (await cri.runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(id=container)))).containers
        assert (entry.image_id, entry.image_ref) == (shown.image_id, shown.image_ref)
        assert entry.image == shown.image
    with pytest.raises(CriError, match="is used by containers") as refused:
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image.id)))
    assert refused.value.code is Status.FAILED_PRECONDITION
    await kubelet.clean()


async def test_the_kubelet_heals_a_damaged_image(kubelet: Kubelet, tmp_path: Path) -> None:
    """It asks whether the image is there, is told no, and pulls: only what is damaged is fetched."""
    cri = kubelet.cri
    with Layout(tmp_path / "layout") as layout:
        layout.image("app:1", [tar([Entry("own", b"o" * 1_900_000)]), busybox_layer(Path("/bin/busybox"))])
    with registry(tmp_path / "one") as host:
        name = f"{host}/team/app:1"
        await push(tmp_path / "layout", "app:1", host, "team/app:1")
        before = (await cri.image.image_fs_info(pb.ImageFsInfoRequest())).image_filesystems[0]
        image = await pull(cri, name)
        usage = (await cri.image.image_fs_info(pb.ImageFsInfoRequest())).image_filesystems[0]
        assert usage.used_bytes is not None
        assert before.used_bytes is not None
        assert usage.used_bytes.value - before.used_bytes.value > 1_900_000
        layers = Path(usage.fs_id.mountpoint) if usage.fs_id else Path()
        newest = max(layers.iterdir(), key=lambda path: int(path.name))
        (newest / "fs").rename(tmp_path / "lost")
        pod = await kubelet.run()
        with pytest.raises(CriError, match=r"image is damaged.*pull it again"):
            await kubelet.create(pod, image=pb.ImageSpec(image=image))
        assert (await status(cri, name)).image is None
        assert await pull(cri, name) == image
        container = await kubelet.started(pod, image=pb.ImageSpec(image=image))
        assert await kubelet.output(container, "echo well") == "well"
        await kubelet.clean()
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))
