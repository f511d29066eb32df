"""A container's root filesystem on the real daemon: hostile links in its image, and its working directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.testing.images import Layout, busybox_layer, symlink, tar
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

HOSTILE = "localhost/hostile:latest"
AMONG_DESCRIPTORS = "localhost/among-descriptors:latest"
OUTSIDE = "made-by-an-image"


@pytest.fixture
async def outside(node: DaemonNode, tmp_path: Path) -> AsyncIterator[Path]:
    """A directory of the host to which the links of the image ``HOSTILE`` lead."""
    target = tmp_path / OUTSIDE
    target.mkdir()
    up = "../" * 20
    links = {"etc": f"{up}{target.relative_to('/')}/etc", "vol": f"{target}/vol", "wd": f"{up}{target.relative_to('/')}/wd"}
    links |= {"fd": "/proc/self/fd/7", "fine": "usr/fine", "late": "/data/app"}
    links = {f"x-{name}": to for name, to in links.items()} | {"etc/resolv.conf": "../run/stub"}
    base = [busybox_layer(Path("/bin/busybox"))]

    def write() -> None:
        with Layout(tmp_path / "layout") as layout:
            config = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
            layout.image(HOSTILE, [*base, tar([symlink(name, to) for name, to in links.items()])], config=config)
            layout.image(AMONG_DESCRIPTORS, base, config={**config, "WorkingDir": "/proc/self/fd/8"})

    await run_sync(write)
    async with connect(node.socket) as cri:
        await cri.admin.import_image(admin.ImportImageRequest(path=str(tmp_path / "layout")))
    yield target
    assert not list(target.iterdir())


async def test_cve_2024_5154_nothing_is_made_through_an_images_links(kubelet: Kubelet, outside: Path) -> None:
    pod = await kubelet.run()
    wanted = [pb.Mount(container_path=f"/x-{name}", host_path="/usr") for name in ("etc", "vol")]
    image = pb.ImageSpec(image=HOSTILE)
    if kubelet.handler == "crun":  # follows links inside, too, but not those that lead nowhere
        with pytest.raises(CriError, match="x-etc"):
            await kubelet.started(pod, image=image, mounts=wanted, name="dangling")
        wanted = []
    container = await kubelet.started(pod, image=image, mounts=wanted, working_dir="/x-wd/here")
    assert (
        await kubelet.output(container, "pwd -P; cat /etc/resolv.conf >/dev/null; readlink -f /x-vol")
        == f"{outside}/wd/here\n{outside}/vol"
    )
    if wanted:
        assert await kubelet.output(container, "ls -d /x-etc/bin /x-vol/bin") == "/x-etc/bin\n/x-vol/bin"
    assert not list(outside.iterdir())


async def test_cve_2024_21626_working_directory_among_descriptors(kubelet: Kubelet, outside: Path) -> None:
    pod = await kubelet.run()
    for path in ("/proc/self/fd/7", "/proc/1/fd/8/../../..", "//proc/self/./fd", "/x-fd", "/x-fine/../x-fd/deeper"):
        with pytest.raises(CriError) as refused:
            await kubelet.create(pod, image=pb.ImageSpec(image=HOSTILE), working_dir=path)
        assert refused.value.code is Status.INVALID_ARGUMENT
        assert refused.value.message.startswith("config.working_dir: ")
        assert "lies among a process's descriptors" in refused.value.message
    with pytest.raises(CriError, match=r"image working_dir: .* lies among a process's descriptors"):
        await kubelet.create(pod, image=pb.ImageSpec(image=AMONG_DESCRIPTORS))


async def test_a_working_directory_is_made(kubelet: Kubelet, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pod = await kubelet.run()
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), run_as_user=pb.Int64Value(value=1000))
    strict = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), readonly_rootfs=True)
    cases = [
        ("/new/deep", "/new/deep", pb.LinuxContainerConfig(security_context=security)),
        ("/new/deep", "/new/deep", pb.LinuxContainerConfig(security_context=strict)),
        ("/x-fine/a", "/usr/fine/a", pb.LinuxContainerConfig(security_context=security)),
        ("/tmp", "/tmp", pb.LinuxContainerConfig(security_context=security)),
        ("/x-late/b", "/data/app/b", pb.LinuxContainerConfig(security_context=strict)),
    ]
    for number, (asked, real, linux) in enumerate(cases):
        volume = [pb.Mount(container_path="/data", host_path=str(tmp_path / "data"))] if "late" in asked else []
        (tmp_path / "data" / "app").mkdir(exist_ok=True)
        container = await kubelet.started(
            pod, image=pb.ImageSpec(image=HOSTILE), name=f"c{number}", working_dir=asked, linux=linux, mounts=volume
        )
        said = await kubelet.output(container, "pwd -P; stat -c '%u:%g %a' .")
        assert said.splitlines() == [real, "0:0 1777" if asked == "/tmp" else "0:0 755"], asked
    assert (tmp_path / "data" / "app" / "b").is_dir()
    with pytest.raises(CriError) as refused:
        await kubelet.create(pod, image=pb.ImageSpec(image=HOSTILE), working_dir="/bin/busybox")
    assert refused.value.code is Status.INVALID_ARGUMENT
    assert "config.working_dir: /bin/busybox in the container's root can't be a directory" in refused.value.message
