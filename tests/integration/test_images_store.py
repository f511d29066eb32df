"""The image store on real overlayfs: import, mount, write, remove, restart, many layers."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import CorruptData, HostError, InUse, InvalidRequest, NotFound
from bridge.host import mounts, syscalls
from bridge.images.settings import ImageSettings, Limits
from bridge.images.store import ImageStore
from bridge.images.tarstream import REGULAR, TarReader
from bridge.ports.images import FsUsage
from bridge.testing.images import Entry, Layout, directory, hardlink, symlink, tar, write_busybox_layout

pytestmark = pytest.mark.root
NAME = "localhost/busybox:latest"


@asynccontextmanager
async def opened(root: Path, **changes: object) -> AsyncIterator[ImageStore]:
    settings = replace(ImageSettings(root), **changes)  # type: ignore[arg-type]
    async with Supervisor() as supervisor, ImageStore.open(settings, supervisor) as store:
        yield store


async def wait_empty(path: Path) -> None:
    """Until background removal is done."""
    with anyio.fail_after(30):
        while os.listdir(path):
            await anyio.sleep(0.01)


@pytest.fixture
def target(tmp_path: Path):
    path = tmp_path / "rootfs"
    path.mkdir()
    yield path
    mounts._unmount_tree(path)


async def test_import_mount_write_remove(tmp_path: Path, target: Path) -> None:
    write_busybox_layout(tmp_path / "layout")
    root = tmp_path / "store"
    async with opened(root) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        assert image.repo_tags == [NAME]
        assert store.find("localhost/busybox") == image
        assert store.find(image.id) == store.find(image.id[7:19]) == image
        assert store.find(f"localhost/busybox@{image.repo_digests[0].partition('@')[2]}") == image
        rootfs = await store.mount_rootfs("c1", image.id, target)
        assert (target / "bin/sh").is_symlink()
        assert (target / "etc/passwd").read_text().startswith("root:")
        (target / "new").write_text("x" * 10000)
        assert (rootfs.upper / "new").exists()
        assert await store.mount_rootfs("c1", image.id, target) == rootfs
        with pytest.raises(InUse, match="c1"):
            await store.remove(NAME)
        usage = store.image_usage()
        assert usage.used_bytes == image.size > 1_900_000
        await store.remove_rootfs("c1", target)
        await store.remove_rootfs("c1", target)
        assert not os.path.ismount(target)
        await store.remove(NAME)
        await store.remove(NAME)
        assert store.list() == []
        assert store.image_usage().used_bytes == store.image_usage().inodes_used == 0
        await wait_empty(root / "tmp")
        assert os.listdir(root / "layers") == os.listdir(root / "snapshots") == []


async def test_usage_is_what_du_says(tmp_path: Path, target: Path) -> None:
    """With hard links, holes, whiteouts, directories that the tar does not list; images and containers apart."""
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        for at in (0, 3_000_000, 9_000_000):
            file.seek(at)
            file.write(os.urandom(70_000))
    await anyio.run_process(["tar", "-C", str(tmp_path), "-S", "-cf", str(tmp_path / "hole.tar"), "hole"])
    files = [Entry(f"d/f{n}", os.urandom(n * 37)) for n in range(300)]
    base = tar([directory("d"), *files, hardlink("d/h", "d/f299"), symlink("d/s", "f1"), Entry("e/e/e/e", b"e")])
    top = tar([*(Entry(f"d/.wh.f{n}") for n in range(100)), Entry("e/.wh..wh..opq")])
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [base, (tmp_path / "hole.tar").read_bytes(), top])
    async with opened(tmp_path / "store", measure_seconds=0.02) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        layers = tmp_path / "store/layers"
        await du_agrees(store.image_usage, layers)
        assert store.image_usage().used_bytes == image.size
        before = store.image_usage()
        rootfs = await store.mount_rootfs("c1", image.id, target)
        (target / "big").write_bytes(os.urandom(500_000))
        (target / "d/f200").unlink()
        os.link(target / "big", target / "again")
        with anyio.fail_after(30):
            while store.container_usage().used_bytes < 500_000:
                await anyio.sleep(0.01)
        await du_agrees(store.container_usage, rootfs.upper)
        assert store.layer_usage("c1") == store.container_usage()
        usage = store.image_usage()
        assert (usage.used_bytes, usage.inodes_used, usage.mountpoint) == (before.used_bytes, before.inodes_used, layers)
        assert store.container_usage().mountpoint == tmp_path / "store/snapshots"
        await store.remove_rootfs("c1", target)


async def du_agrees(usage: Callable[[], FsUsage], top: Path) -> None:
    """Within 1 % of what du(1) says of ``top``, not counting the directory itself where it holds the layers."""
    os.sync()
    own = 0 if top.name == "upper" else 1
    said = {}
    for what in ("--block-size=1", "--inodes"):
        done = await anyio.run_process(["du", "-s", what, str(top)])
        said[what] = int(done.stdout.split()[0])
    found = usage()
    assert abs(found.used_bytes - (said["--block-size=1"] - own * top.stat().st_blocks * 512)) <= said["--block-size=1"] / 100
    assert found.inodes_used == said["--inodes"] - own


async def test_state_survives_a_restart_and_strays_do_not(tmp_path: Path, target: Path) -> None:
    write_busybox_layout(tmp_path / "layout")
    root = tmp_path / "store"
    async with opened(root) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        await store.mount_rootfs("c1", image.id, target)
        (target / "kept").write_text("kept")
    mounts._unmount(target)
    for stray in ("layers/77/fs", "layers/junk", "snapshots/gone/upper", "tmp/half/fs"):
        (root / stray).mkdir(parents=True)
    async with opened(root) as store:
        assert store.list() == [image]
        assert store.containers() == ["c1"]
        await store.remount_rootfs("c1", target)
        await store.remount_rootfs("c1", target)
        assert (target / "kept").read_text() == "kept"
        await wait_empty(root / "tmp")
        assert os.listdir(root / "layers") == ["1"]
        assert os.listdir(root / "snapshots") == ["c1"]
        await store.remove_rootfs("c1", target)
        with pytest.raises(NotFound):
            await store.remount_rootfs("c1", target)


async def test_a_damaged_index_is_set_aside_and_keeps_what_containers_stand_on(tmp_path: Path, target: Path) -> None:
    write_busybox_layout(tmp_path / "layout")
    root = tmp_path / "store"
    async with opened(root) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        await store.mount_rootfs("c1", image.id, target)
    (root / "index.db").write_bytes(b"rubbish" * 1000)
    async with opened(root) as store:
        assert store.list() == []
        assert (target / "etc/passwd").exists()
        (again,) = await store.import_archive(tmp_path / "layout")
        assert again == image
        assert sorted(os.listdir(root / "layers")) == ["1", "2"]
        await store.remove_rootfs("c1", target)  # the index knows no such container any more
        assert not os.path.ismount(target)
        assert os.listdir(root / "snapshots") == []


async def test_127_layers(tmp_path: Path, target: Path) -> None:
    layers = [tar([Entry(f"f{n}", str(n).encode()), Entry("top", str(n).encode())]) for n in range(127)]
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/many:1", layers)
        layout.image("example.com/toomany:1", [*layers, tar([])])
    async with opened(tmp_path / "store") as store:
        with pytest.raises(CorruptData, match="128 layers"):
            await store.import_archive(tmp_path / "layout")
        assert store.list() == []
    with Layout(tmp_path / "layout2") as layout:
        layout.image("example.com/many:1", layers)
    async with opened(tmp_path / "store", limits=Limits()) as store:
        (image,) = await store.import_archive(tmp_path / "layout2")
        await store.mount_rootfs("c" * 64, image.id, target)
        assert len(os.listdir(target)) == 128
        assert (target / "top").read_text() == "126"
        assert (target / "f0").read_text() == "0"
        await store.remove_rootfs("c" * 64, target)


async def test_whiteouts_opaque_directories_and_forgotten_parents(tmp_path: Path, target: Path) -> None:
    base = tar([
        Entry("./", type=tarfile.DIRTYPE, mode=0o751, uid=7),
        Entry("a/", type=tarfile.DIRTYPE, mode=0o700, uid=5, gid=6, mtime=1234), Entry("a/x", b"x"), Entry("a/y", b"y"),
        directory("b"), Entry("b/old", b""), directory("c"), Entry("c/old", b""), Entry("gone", b""),
    ])  # fmt: skip
    top = tar([
        Entry("a/new", b"n"), Entry("a/.wh.x"), Entry(".wh.gone"), Entry("b/.wh..wh..opq"), Entry("b/new", b""),
        Entry(".wh.c"), directory("c"), Entry("c/new", b""),
    ])  # fmt: skip
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/w:1", [base, top], compression="zstd")
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        await store.mount_rootfs("c1", image.id, target)
        assert sorted(os.listdir(target)) == ["a", "b", "c"]
        assert sorted(os.listdir(target / "a")) == ["new", "y"]
        assert os.listdir(target / "b") == os.listdir(target / "c") == ["new"]
        looks = (target / "a").stat()
        assert (looks.st_mode & 0o7777, looks.st_uid, looks.st_gid, looks.st_mtime) == (0o700, 5, 6, 1234)
        assert (target.stat().st_mode & 0o7777, target.stat().st_uid) == (0o751, 7)
        await store.remove_rootfs("c1", target)


async def test_names_share_an_image_and_go_one_by_one(tmp_path: Path) -> None:
    layers = [tar([Entry("f", b"1")])]
    with Layout(tmp_path / "one") as layout:
        layout.image("example.com/r:1", layers)
    with Layout(tmp_path / "two") as layout:
        layout.image("example.com/r:2", layers)
    with Layout(tmp_path / "moved") as layout:
        layout.image("example.com/r:2", [tar([Entry("f", b"2")])])
    async with opened(tmp_path / "store", pinned=["example.com/r:*"]) as store:
        await store.import_archive(tmp_path / "one")
        (image,) = await store.import_archive(tmp_path / "two")
        assert image.repo_tags == ["example.com/r:1", "example.com/r:2"]
        assert image.pinned
        await store.import_archive(tmp_path / "moved")
        assert [i.repo_tags for i in store.list() if i.id == image.id] == [["example.com/r:1"]]
        await store.remove("example.com/r:1")
        assert len(store.list()) == 1
        with pytest.raises(InvalidRequest, match="not a tag"):
            store.find("example.com/r:$")
        await store.remove(store.list()[0].id)
        assert store.list() == []


async def test_docker_archive_plain_and_compressed(tmp_path: Path) -> None:
    layer = tar([Entry("f", b"1")])
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/d:1", [layer, layer])
    async with opened(tmp_path / "s1") as store:
        (direct,) = await store.import_archive(tmp_path / "layout")
    archive = f"docker-archive:{tmp_path}/d.tar:example.com/d:1"
    await anyio.run_process(["skopeo", "copy", "-q", f"oci:{tmp_path}/layout:example.com/d:1", archive])
    for command in (["true"], ["gzip", str(tmp_path / "d.tar")]):
        await anyio.run_process(command)
        (path,) = tmp_path.glob("d.tar*")
        async with opened(tmp_path / f"s-{path.name}") as store:
            (image,) = await store.import_archive(path)
            assert image.repo_tags == ["example.com/d:1"]
            assert image.chain_ids == direct.chain_ids
            assert image.repo_digests == []
            await store.remove(image.id)
            (image,) = await store.import_archive(path, "example.org/other:3")
            assert image.repo_tags == ["example.org/other:3"]


async def test_oci_archive_and_what_is_no_archive(tmp_path: Path) -> None:
    write_busybox_layout(tmp_path / "layout")
    with tarfile.open(tmp_path / "oci.tar", "w") as archive:
        archive.add(tmp_path / "layout", ".")
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "oci.tar")
        assert image.repo_tags == [NAME]
        with pytest.raises(CorruptData):
            await store.import_archive(tmp_path / "junk")
        with pytest.raises(InvalidRequest, match="does not exist"):
            await store.import_archive(tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidRequest, match="neither"):
            await store.import_archive(tmp_path / "empty")
        await wait_empty(tmp_path / "store/tmp")


class Replay:
    """The chunks of a layer's tar from its log, with ``content`` of the current member put in where the reader wants it."""

    def __init__(self, log: bytes) -> None:
        self._log = log
        self.content: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        while self._log or self.content is not None:
            size = 512
            if self.content is not None:
                content, self.content = self.content, None
                yield content
                size = -len(content) % 512
            piece, self._log = self._log[:size], self._log[size:]
            yield piece


def rebuilt(layer: Path) -> str:
    """The diff id of ``layer`` as its files and log tell it now (docs/adr/0003-image-store.md)."""
    whole = hashlib.sha256()
    replay = Replay(gzip.decompress((layer / "tar.gz").read_bytes()))
    reader = TarReader(iter(replay), whole.update)
    for member in reader:
        name = member.name.decode()
        if member.type in REGULAR and not os.path.basename(name).startswith(".wh."):
            data = (layer / "fs" / name).read_bytes()
            segments = [(0, len(data))] if member.segments is None else member.segments
            replay.content = b"".join(data[at : at + length] for at, length in segments)
            for piece in reader.content():
                whole.update(piece)
    return "sha256:" + whole.hexdigest()


async def test_a_layer_can_be_made_again_from_files_and_log(tmp_path: Path) -> None:
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.write(b"a" * 5000)
        file.seek(3_000_000)
        file.write(b"b" * 777)
    parts = []
    for flags in (["--format=gnu"], ["--format=posix"]):
        await anyio.run_process(["tar", "-C", str(tmp_path), "-S", *flags, "-cf", str(tmp_path / "hole.tar"), "hole"])
        parts.append((tmp_path / "hole.tar").read_bytes())
    mixed = tar([
        Entry("./", type=tarfile.DIRTYPE), Entry("./e", b""), Entry("./f", b"x" * 1300), hardlink("g", "f"), symlink("s", "f"),
        Entry(".wh.gone", b"odd content"), Entry("n" * 150, b"12"), Entry("dev", type=tarfile.CHRTYPE, device=(1, 3)),
        Entry("x", b"y" * 512, pax={"SCHILY.xattr.user.a": "b"}),
    ])  # fmt: skip
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/log:1", [mixed, *parts, b"", tar([]) + b"trailing"])
    async with opened(tmp_path / "store") as store:
        await store.import_archive(tmp_path / "layout")
        for layer in store._catalogue.layers.values():
            assert layer.exact
            assert rebuilt(tmp_path / "store/layers" / str(layer.id)) == layer.diff_id
        (tmp_path / "store/layers/1/fs/f").write_bytes(b"z" * 1300)
        assert rebuilt(tmp_path / "store/layers/1") != store._catalogue.layers_by_id[1].diff_id


async def test_imports_and_removals_at_once(tmp_path: Path) -> None:
    base = tar([Entry("base", os.urandom(200_000))])
    for number in range(6):
        with Layout(tmp_path / f"l{number}") as layout:
            layout.image(f"example.com/race:{number}", [base, tar([Entry(f"f{number}", b"")])])
    root = tmp_path / "store"
    async with opened(root) as store:

        async def churn(number: int) -> None:
            for _ in range(6):
                (image,) = await store.import_archive(tmp_path / f"l{number}")
                assert (root / "layers" / str(store._catalogue.layers[image.chain_ids[0]].id) / "fs/base").stat().st_size == 200_000
                await store.remove(f"example.com/race:{number}")

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(churn, number)
        assert store.list() == []
        await store.gc()
        await wait_empty(root / "tmp")
        assert os.listdir(root / "layers") == []


async def test_a_full_disk_is_said_and_leaves_room_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    syscalls.mount("tmpfs", root, "tmpfs", 0, "size=1500k")
    try:
        write_busybox_layout(tmp_path / "layout")
        async with opened(root) as store:
            with pytest.raises(HostError, match="No space left") as caught:
                await store.import_archive(tmp_path / "layout")
            assert caught.value.errno == errno.ENOSPC
            assert store.list() == []
            await wait_empty(root / "tmp")
            syscalls.mount("tmpfs", root, "", syscalls.MS_REMOUNT, "size=8m")
            (image,) = await store.import_archive(tmp_path / "layout")
            assert image.size > 1_900_000
    finally:
        mounts._unmount(root)


async def test_writable_layers_are_measured_in_the_background(tmp_path: Path, target: Path) -> None:
    write_busybox_layout(tmp_path / "layout")
    async with opened(tmp_path / "store", measure_seconds=0.02) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        await store.mount_rootfs("c1", image.id, target)
        (target / "big").write_bytes(b"x" * 1_000_000)
        with anyio.fail_after(30):
            while store.container_usage().used_bytes < 1_000_000:
                await anyio.sleep(0.01)
        usage = store.snapshots.usage("c1")
        assert usage is not None
        assert usage.inodes_used == 2
        await store.remove_rootfs("c1", target)
        assert store.container_usage().used_bytes == 0


async def test_an_image_without_layers_and_bad_container_ids(tmp_path: Path, target: Path) -> None:
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/empty:1", [])
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        assert image.size == 0
        await store.mount_rootfs("c1", image.id, target)
        assert os.listdir(target) == []
        await store.remove_rootfs("c1", target)
        for bad in ("", "../c", "a/b", "."):
            with pytest.raises(InvalidRequest, match="container id"):
                await store.mount_rootfs(bad, image.id, target)
        with pytest.raises(NotFound):
            await store.mount_rootfs("c2", "sha256:" + "0" * 64, target)
        with pytest.raises(HostError):
            await store.mount_rootfs("c3", image.id, tmp_path / "missing")
        assert store.containers() == []
        assert os.listdir(tmp_path / "store/snapshots") == []


@pytest.mark.parametrize("by_id", [True, False])
async def test_the_same_image_removed_by_many_at_once(tmp_path: Path, by_id: bool) -> None:
    """critest: should not fail on simultaneous RemoveImage calls."""
    write_busybox_layout(tmp_path / "layout", "localhost/one:latest")
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        wanted = image.id if by_id else "localhost/one:latest"
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(store.remove, wanted)
        assert store.list() == []
        assert store.find("localhost/one:latest") is None
