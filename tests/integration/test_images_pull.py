"""Pulling from a real registry: names, digests, platforms, mirrors, damage, refusals, concurrency, resumption."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import anyio
import pytest
from aiohttp import web

from bridge.aio import Supervisor
from bridge.errors import BridgeError, ImageAbsent, ImagePullFailed, RegistryUnavailable
from bridge.host import mounts
from bridge.images.manifest import Platform
from bridge.images.settings import ImageSettings, Limits, Registry
from bridge.images.store import ImageStore
from bridge.ports.images import RegistryAuth
from bridge.testing.images import Entry, Layout, compress, digest, tar
from tests.integration.registry_node import REGISTRY, Proxy, free_port, proxy, push, registry

pytestmark = [pytest.mark.root, pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry")]

BIG = Entry("big", os.urandom(3_000_000))
LAYERS = [tar([Entry("a", b"1")]), tar([BIG])]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """A registry with example images below ``t/``."""
    with tempfile.TemporaryDirectory() as directory, registry(Path(directory) / "registry") as host:
        layers = LAYERS
        with Layout(Path(directory) / "layout") as layout:
            layout.image("gzip", layers, config={"Cmd": ["/a"], "Env": ["A=b"]})
            layout.image("zstd", layers, compression="zstd", config={"Cmd": ["/z"]})
            layout.image("plain", [tar([Entry("p", b"")])], compression="")
            layout.image("other", [layers[0], tar([Entry("other", b"")])])
            layout.image("rebased", [tar([Entry("base", b"")]), layers[1]])
            layout.image("rebased-again", [layers[1], layers[0], layers[1]])
            offers = [layout.image(None, [tar([Entry(f"is-{name}", b"")])], architecture=name) for name in ("arm64", "amd64", "s390x")]
            layout.index("index", offers)
        for name in ("gzip", "zstd", "plain", "other", "index", "rebased", "rebased-again"):
            anyio.run(push, Path(directory) / "layout", name, host, f"t/{name}:v1")
        yield host


@pytest.fixture
async def front(hub: str) -> AsyncIterator[Proxy]:
    async with proxy(hub) as made:
        yield made


@asynccontextmanager
async def opened(root: Path, **changes: object) -> AsyncIterator[ImageStore]:
    settings = replace(ImageSettings(root, idle_seconds=2.0, platform=Platform("linux", "amd64")), **changes)  # type: ignore[arg-type]
    async with Supervisor() as supervisor, ImageStore.open(settings, supervisor) as store:
        yield store


async def nothing_left(store: ImageStore, root: Path) -> None:
    """No image, no live layer, and no scratch beyond what a retry may reuse."""
    assert store.list() == []
    assert os.listdir(root / "layers") == []
    with anyio.fail_after(30):
        while len(os.listdir(root / "tmp")) > len(store._layers._staged):
            await anyio.sleep(0.01)


@pytest.mark.parametrize("name", ["gzip", "zstd", "plain"])
async def test_by_tag_then_by_digest(hub: str, tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / "s") as store:
        image = await store.pull(f"{hub}/t/{name}:v1")
        assert image.repo_tags == [f"{hub}/t/{name}:v1"]
        assert len(image.repo_digests) == 1
        by_digest = await store.pull(image.repo_digests[0])
        assert by_digest.id == image.id
        assert store.find(image.repo_digests[0]) == by_digest
        both = await store.pull(f"{hub}/t/{name}:v1@{image.repo_digests[0].partition('@')[2]}")
        assert (both.id, both.repo_tags) == (image.id, image.repo_tags)
        await store.remove(image.repo_tags[0])
        assert len(store.list()) == 1
        await store.remove(image.repo_digests[0])
        assert store.list() == []


async def test_an_index_gives_our_platform(hub: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        await store.pull(f"{hub}/t/index:v1")
        assert os.listdir(tmp_path / "s/layers/1/fs") == ["is-amd64"]
    async with opened(tmp_path / "r", platform=Platform("linux", "riscv64")) as store:
        with pytest.raises(ImagePullFailed, match="no manifest for linux/riscv64; it has: linux/amd64, linux/arm64, linux/s390x"):
            await store.pull(f"{hub}/t/index:v1")
        await nothing_left(store, tmp_path / "r")


async def test_mirrors_are_asked_in_order_and_the_registry_last(hub: str, front: Proxy, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    registries = {"registry.example": Registry(mirrors=[dead, f"http://{front.host}"])}
    async with opened(tmp_path / "s", registries=registries) as store:
        image = await store.pull("registry.example/t/gzip:v1")
        assert image.repo_tags == ["registry.example/t/gzip:v1"]
        assert front.blobs() == 3
    registries = {hub: Registry(mirrors=[f"http://{front.host}"])}
    front.fault = lambda request: refuse(404)
    async with opened(tmp_path / "t", registries=registries) as store:
        await store.pull(f"{hub}/t/gzip:v1")


async def refuse(status: int, body: object = None) -> web.Response:
    return web.json_response(body, status=status)


async def test_a_damaging_mirror_costs_only_the_damaged_layer(hub: str, front: Proxy, tmp_path: Path) -> None:
    front.tamper = lambda path, body: body[:-9] + b"!" + body[-8:] if "/blobs/" in path and len(body) > 1_000_000 else body
    async with opened(tmp_path / "s", registries={hub: Registry(mirrors=[f"http://{front.host}"])}) as store:
        image = await store.pull(f"{hub}/t/gzip:v1")
        assert (tmp_path / "s/layers/2/fs/big").read_bytes() == BIG.data
        assert len(image.chain_ids) == 2


@pytest.mark.parametrize(
    "tamper",
    [lambda b: b[:-9] + b"!" + b[-8:], lambda b: b[: len(b) // 2] + b"x" + b[len(b) // 2 + 1 :], lambda b: b + b"more"],
    ids=["tail", "middle", "longer"],
)
async def test_damaged_blobs_are_refused_and_leave_nothing(front: Proxy, tmp_path: Path, tamper) -> None:
    front.tamper = lambda path, body: tamper(body) if "/blobs/" in path and len(body) > 1_000_000 else body
    async with opened(tmp_path / "s") as store:
        with pytest.raises(ImagePullFailed, match="gzip"):
            await store.pull(f"{front.host}/t/gzip:v1")
        await nothing_left(store, tmp_path / "s")
        # The good layer was kept, so the retry fetches the bad one alone.
        front.tamper = lambda path, body: body
        front.requests.clear()
        await store.pull(f"{front.host}/t/gzip:v1")
        assert front.blobs() == 2  # config and one layer


async def test_refusals_carry_the_registrys_words(hub: str, front: Proxy, tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        with pytest.raises(ImageAbsent, match=r"404.*(?i:manifest unknown)"):
            await store.pull(f"{hub}/t/gzip:none")
        with pytest.raises(ImagePullFailed, match="404"):
            await store.pull(f"{hub}/t/none:v1")
        front.fault = lambda request: refuse(403, {"errors": [{"code": "DENIED", "message": "you may not"}]})
        with pytest.raises(ImagePullFailed, match=r"403.*DENIED: you may not"):
            await store.pull(f"{front.host}/t/gzip:v1")
        front.fault = lambda request: refuse(503)
        with pytest.raises(RegistryUnavailable, match=r"^RegistryUnavailable: .*503"):
            await store.pull(f"{front.host}/t/gzip:v1")
        with pytest.raises(RegistryUnavailable, match="can't be used"):
            await store.pull(f"127.0.0.1:{free_port()}/t/gzip:v1")
        await nothing_left(store, tmp_path / "s")


async def test_garbage_for_a_manifest(front: Proxy, tmp_path: Path) -> None:
    async with opened(tmp_path / "s", limits=Limits(manifest_bytes=100_000)) as store:
        for body in (b"{", b"[]", b"null", b'{"schemaVersion":1}', b'{"schemaVersion":2,"layers":7}', b"[" * 90_000, b"x" * 200_000):
            front.tamper = lambda path, _, body=body: body
            with pytest.raises(ImagePullFailed):
                await store.pull(f"{front.host}/t/gzip:v1")


async def test_many_pulls_are_one_download(front: Proxy, tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(store.pull, f"{front.host}/t/gzip:v1")
            group.start_soon(store.pull, f"{front.host}/t/other:v1")
        assert front.blobs() == 5  # two configs, the shared layer once, two more layers
        assert max(front.requests.values()) == 1
        assert len(store.list()) == 2
        front.requests.clear()
        await store.pull(f"{front.host}/t/gzip:v1")
        assert front.blobs() == 0


def downloads_of(front: Proxy, number: int) -> int:
    """How often the blob of that layer was fetched, from whatever repository."""
    name = digest(compress(LAYERS[number], "gzip"))
    return sum(count for path, count in front.requests.items() if path.endswith(name))


async def test_a_layer_on_two_bases_is_one_download(front: Proxy, tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        async with anyio.create_task_group() as group:  # wanted twice at once, then again when it is there
            group.start_soon(store.pull, f"{front.host}/t/gzip:v1")
            group.start_soon(store.pull, f"{front.host}/t/rebased:v1")
        await store.pull(f"{front.host}/t/rebased-again:v1")
        assert downloads_of(front, 1) == 1
        found = [path for path in (tmp_path / "s/layers").glob("*/fs/big") if path.read_bytes() == BIG.data]
        assert len(found) == 4
        report = await store.check(full=True)
        assert report.clean, report


async def test_a_damaged_twin_is_fetched(front: Proxy, tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        await store.pull(f"{front.host}/t/gzip:v1")
        (tmp_path / "s/layers/2/fs/big").write_bytes(BIG.data[::-1])
        await store.pull(f"{front.host}/t/rebased:v1")
        assert downloads_of(front, 1) == 2
        assert (tmp_path / "s/layers/4/fs/big").read_bytes() == BIG.data


async def test_a_broken_transfer_goes_on_where_it_ended(front: Proxy, tmp_path: Path) -> None:
    ranges = []

    async def cut(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path:
            return None
        ranges.append(request.headers.get("Range", ""))
        body = await front_body(front, request)
        if len(body) < 300_000:
            return None
        response = web.StreamResponse(status=206 if ranges[-1] else 200)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[:300_000])
        assert request.transport is not None
        request.transport.close()
        return response

    front.fault = cut
    async with opened(tmp_path / "s") as store:
        await store.pull(f"{front.host}/t/gzip:v1")
        assert (tmp_path / "s/layers/2/fs/big").read_bytes() == BIG.data
    assert sum(1 for value in ranges if value.startswith("bytes=")) >= 5


async def front_body(front: Proxy, request: web.Request) -> bytes:
    async with aiohttp.ClientSession() as session:
        headers = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
        async with session.get(f"http://{front.upstream}{request.path}", headers=headers) as answer:
            return await answer.read()


async def test_a_silent_registry_is_given_up(front: Proxy, tmp_path: Path) -> None:
    async def silent(request: web.Request) -> None:
        await anyio.sleep(30)

    front.fault = silent
    async with opened(tmp_path / "s", idle_seconds=0.2) as store:
        with anyio.fail_after(30), pytest.raises(RegistryUnavailable, match="nothing arrived in time"):
            await store.pull(f"{front.host}/t/gzip:v1")


async def test_bearer_tokens_and_credentials_that_stay_secret(front: Proxy, tmp_path: Path) -> None:
    async def guarded(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            good = request.headers.get("Authorization") == "Basic dTpwYXNzd29yZA==" and request.query["scope"] == "repository:t/gzip:pull"
            return web.json_response({"token": "T1"}) if good else web.json_response({"errors": [{"code": "DENIED"}]}, status=401)
        if request.headers.get("Authorization") == "Bearer T1":
            return None
        challenge = f'Bearer realm="http://{front.host}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    front.fault = guarded
    async with opened(tmp_path / "s") as store:
        image = await store.pull(f"{front.host}/t/gzip:v1", RegistryAuth(username="u", password="password"))
        for name in (f"{front.host}/t/gzip:v1", *image.repo_digests, image.id):  # once it is here, no one asks for credentials
            assert store.find(name) == image
        await store.mount_volume("c", image.id, tmp_path / "volume")
        assert os.listdir(tmp_path / "volume")
        await mounts.unmount(tmp_path / "volume")
        for auth in (None, RegistryAuth(username="u", password="hunter2")):
            with pytest.raises(ImagePullFailed, match="401") as caught:
                await store.pull(f"{front.host}/t/gzip:v1", auth)
            assert "hunter2" not in str(caught.value) + str(caught.value.__notes__ if hasattr(caught.value, "__notes__") else "")


async def test_a_caller_that_leaves_does_not_stop_the_pull(front: Proxy, tmp_path: Path) -> None:
    gate = anyio.Event()

    async def slow(request: web.Request) -> None:
        if "/blobs/" in request.path:
            await gate.wait()

    front.fault = slow
    async with opened(tmp_path / "s", idle_seconds=20) as store:
        with anyio.move_on_after(0.3) as scope:
            await store.pull(f"{front.host}/t/gzip:v1")
        assert scope.cancelled_caught
        gate.set()
        with anyio.fail_after(30):
            while not store.list():
                await anyio.sleep(0.01)
        assert max(front.requests.values()) == 1


async def test_progress_of_pulls_that_share_a_layer(front: Proxy, tmp_path: Path) -> None:
    begun, gate = anyio.Event(), anyio.Event()

    async def slow(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path or len(body := await front_body(front, request)) < 1_000_000:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body[:1_000_000])
        begun.set()
        await gate.wait()
        await response.write(body[1_000_000:])
        return response

    front.fault = slow
    async with opened(tmp_path / "s", idle_seconds=20) as store, anyio.create_task_group() as group:
        await store.pull(f"{front.host}/t/other:v1")  # brings the layer that both have
        group.start_soon(store.pull, f"{front.host}/t/gzip:v1")
        alias = f"localhost:{front.host.partition(':')[2]}/t/gzip:v1"
        group.start_soon(store.pull, alias)  # the same image by another name
        with anyio.fail_after(30):
            await begun.wait()
            while not all(len(pull.layers) > 1 and pull.layers[1].received == 1_000_000 for pull in store.progress()):
                await anyio.sleep(0.01)
        pulls = store.progress()
        assert {pull.reference for pull in pulls} == {f"{front.host}/t/gzip:v1", alias}
        for pull in pulls:
            assert [layer.state for layer in pull.layers] == ["present", "downloading"]
            assert pull.layers[1].size > 3_000_000
        gate.set()
        with anyio.fail_after(30):
            while store.progress():
                await anyio.sleep(0.01)


async def test_a_pull_that_nobody_waits_for_is_cancelled_in_time(front: Proxy, tmp_path: Path) -> None:
    async def stuck(request: web.Request) -> None:
        if "/blobs/" in request.path:
            await anyio.sleep(30)

    front.fault = stuck
    async with opened(tmp_path / "s", idle_seconds=20, linger=0.2) as store:
        with anyio.move_on_after(0.3):
            await store.pull(f"{front.host}/t/gzip:v1")
        assert store.progress()
        with anyio.fail_after(30):
            while store.progress():
                await anyio.sleep(0.01)
        await nothing_left(store, tmp_path / "s")


async def test_shutdown_amid_a_pull_leaves_nothing_for_the_next_start(front: Proxy, tmp_path: Path) -> None:
    started = anyio.Event()

    async def stuck(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path or len(await front_body(front, request)) < 1000:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write((await front_body(front, request))[:100_000])
        started.set()
        await anyio.sleep(30)
        return response

    front.fault = stuck
    async with anyio.create_task_group() as group:
        async with opened(tmp_path / "s", idle_seconds=20) as store:

            async def pull() -> None:
                with pytest.raises(BridgeError):
                    await store.pull(f"{front.host}/t/gzip:v1")

            group.start_soon(pull)
            await started.wait()
    async with opened(tmp_path / "s") as store:
        await nothing_left(store, tmp_path / "s")


async def pull_again(store: ImageStore, front: Proxy, name: str) -> list[int]:
    """What the registry answered to a pull of an image that is there, whose index must not be touched for it."""
    front.statuses.clear()
    image = store.find(name)
    before = store._catalogue._database._committed
    assert await store.pull(name) == image
    assert store._catalogue._database._committed == before, "nothing was to be written"
    return front.statuses


@pytest.mark.parametrize(("repository", "cold"), [("gzip", 4), ("index", 4)])
async def test_an_image_that_is_here_costs_one_question_and_no_write(front: Proxy, tmp_path: Path, repository: str, cold: int) -> None:
    name = f"{front.host}/t/{repository}:v1"
    async with opened(tmp_path / "s") as store:
        await store.pull(name)
        assert len(front.statuses) == cold
        assert await pull_again(store, front, name) == [304]
        front.conditions.clear()  # a registry that knows no conditions sends the manifest
        assert await pull_again(store, front, name) == [200]
        front.conditions.append("If-None-Match")
    async with opened(tmp_path / "s") as store:  # nor is it different for a server that was started anew
        assert await pull_again(store, front, name) == [304]
        by_digest = store.list()[0].repo_digests[0]
        await store.pull(by_digest)
        assert await pull_again(store, front, by_digest) == [304]
        front.fault = lambda request: refuse(403)
        with pytest.raises(ImagePullFailed, match="403"):
            await store.pull(name)


async def test_a_document_that_was_damaged_is_asked_for_again(front: Proxy, tmp_path: Path) -> None:
    name = f"{front.host}/t/gzip:v1"
    async with opened(tmp_path / "s") as store:
        image = await store.pull(name)
        record = store._catalogue.images[image.id]
        for digest, wanted in ((record.manifest, [200]), (image.id, [304, 200])):
            await store._catalogue._database.write(lambda c, d=digest: c.execute("UPDATE blobs SET data = x'00' WHERE digest = ?", (d,)))
            front.statuses.clear()
            await store.pull(name)
            assert front.statuses == wanted
            assert await pull_again(store, front, name) == [304]
