"""One image has one id in every RPC, by whatever registry, tag, digest or archive it came; and the image verbs on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.testing.images import Entry, Layout, tar, write_busybox_layout
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet
from tests.integration.registry_node import REGISTRY, proxy, push, registry

__all__ = ["handler", "kubelet", "node"]

pytestmark = [pytest.mark.root, pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry")]
_CONFIG = {"Cmd": ["sleep", "1000"], "User": "1000:1000", "Labels": {"made": "by us"}}


@pytest.fixture
def hubs() -> Iterator[tuple[str, str]]:
    """Two registries. They end before the leak audit looks, and the connections that the server keeps to them with them."""
    with tempfile.TemporaryDirectory() as directory:
        with registry(Path(directory) / "one") as one, registry(Path(directory) / "two") as two:
            yield one, two


async def command(node: DaemonNode, *words: str, code: int = 0) -> tuple[str, str]:
    """What ``cri-bridge image`` with ``words`` says on stdout and stderr."""
    argv = [sys.executable, "-m", "bridge", "--config", str(node.config_file), "image", *words, "--socket", str(node.socket)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    out, err = await process.communicate()
    assert process.returncode == code, out.decode() + err.decode()
    return out.decode(), err.decode()


def spec(name: str) -> pb.ImageSpec:
    return pb.ImageSpec(image=name)


async def listed(kubelet: Kubelet, image: str) -> pb.Image:
    """The image as ListImages and StreamImages show it, which must be the same."""
    found = (await kubelet.cri.image.list_images()).images
    streamed = [one async for reply in kubelet.cri.image.stream_images() for one in reply.images]
    assert streamed == found
    (one,) = [each for each in found if each.id == image]
    only = pb.ImageFilter(image=spec(image))
    assert (await kubelet.cri.image.list_images(pb.ListImagesRequest(filter=only))).images == [one]
    assert [r.images async for r in kubelet.cri.image.stream_images(pb.StreamImagesRequest(filter=only))] == [[one]]
    return one


async def test_one_id_everywhere(kubelet: Kubelet, node: DaemonNode, hubs: tuple[str, str], tmp_path: Path) -> None:
    digest = await asyncio.to_thread(write_busybox_layout, tmp_path / "layout", "x", config=_CONFIG)
    names = [f"{hubs[0]}/team/tool:1", f"{hubs[1]}/other:2"]
    for name in names:
        host, _, repository = name.partition("/")
        await push(tmp_path / "layout", "x", host, repository)
    by_digest = f"{hubs[0]}/team/tool@{digest}"
    pulls = [await kubelet.cri.image.pull_image(pb.PullImageRequest(image=spec(name))) for name in (*names, by_digest)]
    (ident,) = {pull.image_ref for pull in pulls}
    said, _ = await command(node, "pull", names[0])
    assert said == f"{ident}\n"

    image = await listed(kubelet, ident)
    digests = sorted([f"{hubs[0]}/team/tool@{digest}", f"{hubs[1]}/other@{digest}"])
    assert (image.repo_tags, image.repo_digests) == (sorted(names), digests)
    assert image.spec == spec(ident)
    assert (image.uid, image.username, image.pinned) == (pb.Int64Value(value=1000), "", False)
    for asked in (*names, *digests, ident, ident[7:20]):
        answer = await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=spec(asked)))
        assert answer.image == image, asked
        assert answer.info == {}
    verbose = await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=spec(ident), verbose=True))
    info = json.loads(verbose.info["info"])
    assert info["imageSpec"]["config"] == {**info["imageSpec"]["config"], **_CONFIG}
    assert info["imageSpec"]["rootfs"]["diff_ids"] == info["chainIDs"] == [info["chainID"]], "the config as it is"

    pod = await kubelet.run()
    containers = {}
    for number, asked in enumerate((names[0], digests[1], ident)):
        containers[await kubelet.started(pod, ["sleep", "1000"], f"c{number}", image=spec(asked))] = asked
    shown = {one.id: one for one in (await kubelet.cri.runtime.list_containers()).containers}
    streamed = {one.id: one async for reply in kubelet.cri.runtime.stream_containers() for one in reply.containers}
    assert streamed == shown
    pods = (await kubelet.cri.runtime.list_pod_sandbox()).items
    assert [one async for reply in kubelet.cri.runtime.stream_pod_sandboxes() for one in reply.pod_sandboxes] == pods
    for container, asked in containers.items():
        status = await kubelet.status(container)
        one = shown[container]
        assert (status.image_id, status.image_ref, status.image) == (ident, digests[0], spec(asked))
        assert (one.image_id, one.image_ref, one.image) == (ident, digests[0], spec(asked))

    await _verbs(node, ident, names, sorted(containers), tmp_path)
    await kubelet.clean()
    assert json.loads((await command(node, "ls", "-o", "json"))[0])
    await command(node, "rm", ident)
    out, _ = await command(node, "import", str(tmp_path / "out.tar"), "-o", "json")
    assert [one["id"] for one in json.loads(out)] == [ident]
    assert (await listed(kubelet, ident)).repo_tags == sorted(names)
    await command(node, "rm", ident)


async def _sent(node: DaemonNode, ident: str) -> bytes:
    """The archive of an image as the command writes it to stdout."""
    words = [sys.executable, "-m", "bridge", "image", "export", ident, "-f", "-", "--socket", str(node.socket)]
    return (await anyio.run_process(words, env=os.environ)).stdout


async def _verbs(node: DaemonNode, ident: str, names: list[str], containers: list[str], tmp_path: Path) -> None:
    """The command's view of the same image while containers use it."""
    entries: list[dict[str, Any]] = json.loads((await command(node, "ls", "-o", "json"))[0])
    (entry,) = [one for one in entries if one["id"] == ident]
    assert entry["used_by"] == containers
    table, _ = await command(node, "ls")
    assert "3 containers" in table
    whole = json.loads((await command(node, "inspect", names[1], "-o", "json"))[0])
    assert (whole["id"], whole["manifest"]["config"]["digest"]) == (ident, ident)
    assert whole["config"]["config"]["Labels"] == _CONFIG["Labels"]
    (layer,) = whole["layers"]
    assert layer["diff_id"] == layer["chain_id"] == whole["config"]["rootfs"]["diff_ids"][0]
    assert layer["digest"] == whole["manifest"]["layers"][0]["digest"]
    assert layer["exact"]
    assert (Path(layer["directory"]) / "fs" / "bin" / "busybox").exists()
    text, _ = await command(node, "inspect", ident[7:15])
    assert f"tag:      {names[0]}" in text or f"tag: {names[0]}" in " ".join(text.split())
    out, _ = await command(node, "export", ident, "-f", str(tmp_path / "out.tar"))
    assert out == f"{tmp_path}/out.tar\n"
    sent = await _sent(node, ident)
    assert sent == (tmp_path / "out.tar").read_bytes()
    _, said = await command(node, "export", ident, "-f", "-", "--format", "oci-dir", code=1)
    assert "path: a directory can't be sent" in said
    _, said = await command(node, "export", ident, "-f", str(tmp_path / "out.tar"), code=1)
    assert "--force replaces it" in said
    _, said = await command(node, "rm", ident, code=1)
    assert containers[0] in said
    out, _ = await command(node, "prune", "--dry-run", "--all")
    assert names[0] not in out, "containers use it"
    out, _ = await command(node, "check", "--full")
    assert out.startswith("nothing is damaged")
    _, said = await command(node, "inspect", "example.com/never:1", code=1)
    assert "is not in the store" in said
    _, said = await command(node, "pull", f"{names[0].rpartition(':')[0]}:absent", code=1)
    assert said.startswith("cri-bridge: ")


async def test_a_pull_is_watched_by_who_asked_and_in_the_status(kubelet: Kubelet, hubs: tuple[str, str], tmp_path: Path) -> None:
    with Layout(tmp_path / "layout") as made:  # of a layer that the store lacks
        made.image("x", [tar([Entry("for", kubelet.handler.encode() * 1000)])])
    async with proxy(hubs[0]) as slow:
        await push(tmp_path / "layout", "x", hubs[0], "slow:1")
        (layer,) = json.loads(await _raw(f"{hubs[0]}/slow:1"))["layers"]
        may_go = asyncio.Event()

        async def hold(request: web.Request) -> None:
            if request.path.endswith(layer["digest"]):
                await may_go.wait()

        slow.fault = hold
        name = f"{slow.host}/slow:1"
        seen: list[admin.LayerProgress] = []
        async with aclosing(kubelet.cri.admin.pull_image(admin.PullImageRequest(reference=name), timeout=60)) as replies:
            async for reply in replies:
                if reply.progress is not None and reply.progress.layers and not may_go.is_set():
                    assert reply.progress.subject == name
                    seen += reply.progress.layers
                    status = await kubelet.cri.runtime.status(pb.StatusRequest(verbose=True))
                    (running,) = json.loads(status.info["pulls"])
                    assert (running["reference"], running["layers"][0]["digest"]) == (name, layer["digest"])
                    may_go.set()
                last = reply
        assert [(one.digest, one.size, one.done) for one in seen] == [(layer["digest"], layer["size"], 0)]
        assert seen[0].state in ("waiting", "downloading")
        assert last.image is not None
        assert last.image.tags == [name]
        await kubelet.cri.image.remove_image(pb.RemoveImageRequest(image=spec(last.image.id)))
        status = await kubelet.cri.runtime.status(pb.StatusRequest(verbose=True))
        assert status.info["pulls"] == "[]"


async def _raw(name: str) -> bytes:
    return (await anyio.run_process(["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{name}"])).stdout
