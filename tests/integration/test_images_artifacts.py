"""OCI artifacts in the store, pushed as oras pushes them: pulled, mounted, checked, mended, exported and removed like images."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import CorruptData, ImagePullFailed, InUse, NotFound, RegistryUnavailable, Unsupported
from bridge.host import mounts
from bridge.images.disk import tree_usage
from bridge.images.exporting import Compression, ExportProgress, ExportRequest, Format
from bridge.images.settings import ImageSettings, Registry
from bridge.images.store import ImageStore
from bridge.testing.images import INDEX_TYPE, MANIFEST_TYPE, Entry, Layout, digest, tar
from bridge.testing.pushes import EMPTY_TYPE, TITLE, File, Pusher
from tests.integration.registry_node import REGISTRY, proxy, registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry"),
]

KIND = "application/x.test.v1"
BIG = os.urandom(3_000_000)
MANY = [
    File("artifact.txt", b"hello artifact\n", "text/plain"), File("sub/2", b"2"), File("./sub/deep/3", b"3"), File("big.bin", BIG),
    File("empty", b""), File("ü/" + "x" * 200, b"long"), File("looks-packed", b"\x1f\x8b not gzip at all"), File(None, b"without a name"),
]  # fmt: skip
UNNAMED = digest(b"without a name").replace(":", "-")
HOSTILE = {"dots": "../up", "absolute": "/etc/passwd", "inner-dots": "a/../../b", "whiteout": ".wh.x", "newline": "a\nb"}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """A registry with artifacts in the repository ``a/b``."""
    with tempfile.TemporaryDirectory() as directory, registry(Path(directory) / "registry") as host:
        pusher = Pusher(host, "a/b")
        pusher.artifact("many", MANY, kind=KIND)
        pusher.artifact("many-again", [*MANY[:2], File("sub/deep/3", b"changed"), *MANY[3:]], kind=KIND)
        pusher.artifact("none", [], kind=KIND)
        pusher.artifact("old", [File("a", b"1", "x/y")], kind="", config=("application/x.config.v1+json", b"no JSON"))
        pusher.artifact("empty-file", [File("config-too", b"{}", EMPTY_TYPE)], kind=KIND)
        for name, title in HOSTILE.items():
            pusher.artifact(name, [File("good", b"1"), File(title, b"2")], kind=KIND)
        pusher.artifact("twice", [File("a", b"1"), File("./a", b"2")], kind=KIND)
        offers = [(name, pusher.artifact(name, [File(f"is-{name}", b"")], kind=KIND)) for name in ("arm64", "amd64")]
        entries = [{**offer, "platform": {"os": "linux", "architecture": name}} for name, offer in offers]
        pusher.manifest("index", {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})
        yield host


@asynccontextmanager
async def opened(root: Path, host: str = "") -> AsyncIterator[ImageStore]:
    registries = {host: Registry(insecure=True)} if host else {}
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root, registries), supervisor) as store:
        yield store


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bundle"
    path.mkdir()
    yield path
    mounts._unmount_tree(path)


def tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def expected(files: list[File]) -> dict[str, bytes]:
    return {(file.title or UNNAMED).removeprefix("./"): file.data for file in files}


async def nothing_left(store: ImageStore, root: Path) -> None:
    with anyio.fail_after(30):
        while store._layers.drop_unfinished() or os.listdir(root / "tmp") or os.listdir(root / "layers"):
            await anyio.sleep(0.02)
    assert store.list() == []


async def test_an_artifact_is_pulled_and_mounted(tmp_path: Path, hub: str, place: Path) -> None:
    async with opened(tmp_path / "store", hub) as store:
        image = await store.pull(f"{hub}/a/b:many")
        assert image.id == image.repo_digests[0].partition("@")[2], "an artifact is known by its manifest"
        assert (image.artifact_type, image.repo_tags, image.config.env) == (KIND, [f"{hub}/a/b:many"], ())
        assert image.size >= len(BIG)
        used = store.image_usage()
        on_disk, inodes = tree_usage(tmp_path / "store" / "layers")
        assert abs(used.used_bytes - on_disk) <= on_disk // 100
        assert used.inodes_used == inodes - 1, "the directory of all layers is nobody's"
        assert [store.find(name) for name in (f"{hub}/a/b:many", image.id, image.id[7:20], image.repo_digests[0])] == [image] * 4
        assert store.list() == [image]
        assert b"artifactType" in await store.config_document(image.id)
        await store.mount_volume("c", image.id, place / "0")
        assert tree(place / "0") == expected(MANY)
        found = (place / "0" / "artifact.txt").stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime) == (0o644, 0, 0, 0)
        assert ((place / "0" / "sub").stat().st_mode & 0o7777, (place / "0").stat().st_mode & 0o7777) == (0o755, 0o755)
        with pytest.raises(OSError, match="Read-only") as failure:
            (place / "0" / "artifact.txt").write_text("changed")
        assert failure.value.errno == errno.EROFS
        await store.mount_volume("c", image.id, place / "1", "sub")
        assert tree(place / "1") == {"2": b"2", "deep/3": b"3"}
        await store.mount_volume("c", image.id, place / "2", "sub/deep/3")
        assert (place / "2").read_bytes() == b"3"
        with pytest.raises(NotFound, match="'absent' does not exist"):
            await store.mount_volume("c", image.id, place / "3", "absent")


async def test_odd_ones_and_the_right_one_of_an_index(tmp_path: Path, hub: str, place: Path) -> None:
    holds = {"none": {}, "old": {"a": b"1"}, "empty-file": {"config-too": b"{}"}, "index": {"is-amd64": b""}}
    async with opened(tmp_path / "store", hub) as store:
        for name, files in holds.items():
            image = await store.pull(f"{hub}/a/b:{name}")
            assert image.artifact_type == ("application/x.config.v1+json" if name == "old" else KIND)
            await store.mount_volume("c", image.id, place / name)
            assert tree(place / name) == files, name


@pytest.mark.parametrize("name", [*HOSTILE, "twice"])
async def test_names_that_lead_anywhere_are_refused(tmp_path: Path, hub: str, name: str) -> None:
    async with opened(tmp_path / "store", hub) as store:
        with pytest.raises(ImagePullFailed, match=r"manifest.layers\[1\].annotations: (the title|two files)"):
            await store.pull(f"{hub}/a/b:{name}")
        await nothing_left(store, tmp_path / "store")


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "another byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a tar behind it": lambda data: data + bytes(-len(data) % 512) + tar([Entry("injected", b"")]),
    "cut short": lambda data: data[:-1],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_is_not_what_its_digest_says(tmp_path: Path, hub: str, change: str) -> None:
    async with proxy(hub) as upstream:
        upstream.tamper = lambda path, body: CHANGES[change](body) if path.endswith(digest(BIG)) else body
        async with opened(tmp_path / "store", upstream.host) as store:
            with pytest.raises((ImagePullFailed, RegistryUnavailable), match=r"is damaged|sent more than|bytes early"):
                await store.pull(f"{upstream.host}/a/b:many")
            await nothing_left(store, tmp_path / "store")


async def test_only_what_is_missing_is_fetched(tmp_path: Path, hub: str, place: Path) -> None:
    async with proxy(hub) as upstream, opened(tmp_path / "store", upstream.host) as store:
        await store.pull(f"{upstream.host}/a/b:many")
        before = upstream.blobs()
        again = await store.pull(f"{upstream.host}/a/b:many-again")
        assert upstream.blobs() - before == 1, "the changed file alone; the config is there already"
        await store.mount_volume("c", again.id, place / "0")
        assert tree(place / "0") == {**expected(MANY), "sub/deep/3": b"changed"}


def damage(root: Path, name: str) -> None:
    (path,) = (path for path in (root / "layers").glob(f"*/fs/**/{name}") if path.is_file())
    found = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


async def test_damage_is_found_and_one_file_fetched_again(tmp_path: Path, hub: str, place: Path) -> None:
    root = tmp_path / "store"
    async with proxy(hub) as upstream, opened(root, upstream.host) as store:
        image = await store.pull(f"{upstream.host}/a/b:many")
        assert (await store.check(full=True)).clean
        damage(root, "big.bin")
        assert (await store.check(full=False)).clean, "neither size nor time differ"
        report = await store.check(full=True)
        assert [list(each.problems) for each in report.damaged] == [["'/big.bin' has another content"]]
        assert store.find(image.id) is None
        before = upstream.blobs()
        assert [one.error for one in await store.repair()] == [""]
        assert upstream.blobs() - before == 1
        assert store.find(image.id) is not None
        assert (await store.check(full=True)).clean
        await store.mount_volume("c", image.id, place / "0")
        assert tree(place / "0") == expected(MANY)


async def test_it_stays_while_it_is_used_and_goes_whole(tmp_path: Path, hub: str, place: Path) -> None:
    root = tmp_path / "store"
    async with opened(root, hub) as store:
        image, other = await store.pull(f"{hub}/a/b:many"), await store.pull(f"{hub}/a/b:many-again")
        await store.mount_volume("c", image.id, place / "0", "sub")
    async with opened(root, hub) as store:
        assert store.find(image.id) == image, "as before the restart"
        with pytest.raises(InUse, match="used by container c"):
            await store.remove(image.id)
        mounts._unmount_tree(place)
        await store.remove_rootfs("c", place / "rootfs")
        await store.remove(f"{hub}/a/b:many")
        assert store.list() == [other]
        assert (await store.check(full=True)).clean, "what both had is still there"
        assert (await store.administration.inspect(other.id)).config == b"{}", "their common config too"
        await store.remove(other.id)
        await nothing_left(store, root)
        assert store.image_usage().used_bytes == 0


@pytest.mark.parametrize("form", [Format.OCI, Format.OCI_DIR])
async def test_export_and_import_change_nothing(tmp_path: Path, hub: str, place: Path, form: Format) -> None:
    async with opened(tmp_path / "store", hub) as store:
        images = [await store.pull(f"{hub}/a/b:{name}") for name in ("many", "many-again", "empty-file", "old")]
        export = store.administration.export
        await export([image.id for image in images], ExportRequest(tmp_path / "out", form), ExportProgress())
        with pytest.raises(Unsupported, match="the docker format has no place for artifacts"):
            await export([images[0].id], ExportRequest(tmp_path / "docker", Format.DOCKER, Compression.NONE), ExportProgress())
        damage(tmp_path / "store", "config-too")
        with pytest.raises(CorruptData, match="'config-too' is damaged"):
            await export([images[2].id], ExportRequest(tmp_path / "damaged"), ExportProgress())
    assert sorted(os.listdir(tmp_path)) == ["bundle", "out", "store"]
    async with opened(tmp_path / "second") as store:
        assert sorted(image.id for image in await store.import_archive(tmp_path / "out")) == sorted(image.id for image in images)
        assert store.find(f"{hub}/a/b:many") is not None
        await store.mount_volume("c", images[0].id, place / "0")
        assert tree(place / "0") == expected(MANY)


async def test_an_archive_that_lies_about_a_length_puts_nothing_else_in(tmp_path: Path) -> None:
    with Layout(tmp_path / "layout") as layout:
        hidden = b"1" + bytes(511) + tar([Entry("injected", b"")])
        layer = {**layout.blob(hidden, "x/y"), "size": 1, "annotations": {TITLE: "a"}}
        head = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": KIND, "config": layout.blob(b"{}", EMPTY_TYPE)}
        layout.add("example.com/a:1", layout.blob(json.dumps({**head, "layers": [layer]}).encode(), MANIFEST_TYPE))
    async with opened(tmp_path / "store") as store:
        with pytest.raises(CorruptData, match=r"is damaged|refused"):
            await store.import_archive(tmp_path / "layout")
        await nothing_left(store, tmp_path / "store")
