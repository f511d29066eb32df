"""Exports that every other tool reads, and that leave nothing when they fail."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import AlreadyExists, CorruptData, HostError, InvalidRequest, NotFound, Unsupported
from bridge.host import mounts, syscalls
from bridge.images.exporting import Compression, ExportProgress, ExportRequest, Format
from bridge.images.progress import LayerState
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, directory, hardlink, symlink, tar
from tests.integration.containerd_node import containerd

pytestmark = pytest.mark.root

ONE, TWO = "example.com/team/one:1", "example.com/two:latest"
_BASE = tar([
    directory("bin"), Entry("bin/tool", os.urandom(3_000_000), mode=0o4755), Entry("etc/of", b"someone", uid=1000, gid=2000),
    symlink("bin/link", "tool"), hardlink("bin/same", "bin/tool"), Entry("empty"), Entry("n" * 180, b"long"),
    Entry("x", b"1", pax={"SCHILY.xattr.user.colour": "blue"}),
])  # fmt: skip
_TOP = tar([Entry("etc/.wh.of"), directory("opaque"), Entry("opaque/.wh..wh..opq"), Entry("new", b"2" * 511)])
FORMATS = [
    (Format.OCI, Compression.GZIP),
    (Format.OCI, Compression.ZSTD),
    (Format.OCI_DIR, Compression.NONE),
    (Format.DOCKER, Compression.NONE),
]


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root), supervisor) as store:
        yield store


@asynccontextmanager
async def filled(top: Path) -> AsyncIterator[ImageStore]:
    """A store with two images that share a layer; the first has two names."""
    with Layout(top / "layout") as made:
        one = made.image(ONE, [_BASE], config={"User": "1000", "Cmd": ["tool"]})
        made.add("example.com/also:1", one)
        made.image(TWO, [_BASE, _TOP], compression="zstd", config={"Env": ["A=b"]})
    async with opened(top / "store") as store:
        await store.import_archive(top / "layout")
        yield store


async def export(store: ImageStore, path: Path, *names: str, progress: ExportProgress | None = None, **changes: object) -> int:
    request = ExportRequest(path, **changes)  # type: ignore[arg-type]
    return (await store.administration.export(names or (ONE, TWO), request, progress or ExportProgress())).size


def ids_of(store: ImageStore) -> dict[str, tuple[str, list[str]]]:
    """Id and chain ids of both images, by name."""
    found = {name: store.find(name) for name in (ONE, TWO)}
    return {name: (image.id, list(image.chain_ids)) for name, image in found.items() if image is not None}


@pytest.mark.parametrize(("format", "compression"), FORMATS)
async def test_two_images_there_and_back(tmp_path: Path, format: Format, compression: Compression) -> None:
    async with filled(tmp_path) as store:
        progress = ExportProgress()
        size = await export(store, tmp_path / "out", progress=progress, format=format, compression=compression)
        path = tmp_path / "out"
        assert size == (path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file()))
        assert {layer.state for layer in progress.show()} == {LayerState.DONE}
        assert len(progress.show()) == 2, "the layer that both have is written once"
        async with opened(tmp_path / "again") as other:
            images = await other.import_archive(path)
            assert {tag for image in images for tag in image.repo_tags} == {ONE, TWO}
            assert ids_of(other) == ids_of(store)
            second = tmp_path / "second"
            await export(other, second, format=format, compression=compression)
            if format is not Format.DOCKER:  # which has no manifests to be the same
                async with opened(tmp_path / "third") as third:
                    digests = {tuple(image.repo_digests) for image in await third.import_archive(second)}
                    assert digests == {tuple(image.repo_digests) for image in images}, "what was exported once is exported the same"
            report = await other.check(True)
            assert report.clean


@pytest.mark.parametrize(
    ("format", "compression"), [each for each in FORMATS if Compression.ZSTD not in each]
)  # Debian's umoci has no zstd
async def test_skopeo_and_umoci_read_it(tmp_path: Path, format: Format, compression: Compression) -> None:
    async with filled(tmp_path) as store:
        await export(store, tmp_path / "out", format=format, compression=compression)
        image = store.find(TWO)
    transport = {Format.OCI: "oci-archive", Format.OCI_DIR: "oci", Format.DOCKER: "docker-archive"}[format]
    await anyio.run_process(["skopeo", "copy", "-q", f"{transport}:{tmp_path}/out:{TWO}", f"oci:{tmp_path}/copy:x"])
    await anyio.run_process(["skopeo", "copy", "-q", f"{transport}:{tmp_path}/out:{TWO}", f"dir:{tmp_path}/plain"])
    assert image is not None
    assert json.loads((tmp_path / "plain" / "manifest.json").read_text())["config"]["digest"] == image.id
    await anyio.run_process(["umoci", "unpack", "--image", f"{tmp_path}/copy:x", f"{tmp_path}/unpacked"])
    rootfs = tmp_path / "unpacked" / "rootfs"
    assert (rootfs / "new").read_bytes() == b"2" * 511
    assert (rootfs / "bin/tool").stat().st_mode & 0o7777 == 0o4755
    assert (rootfs / "bin/tool").stat().st_ino == (rootfs / "bin/same").stat().st_ino
    assert not (rootfs / "etc/of").exists()
    if format is Format.OCI:  # Docker's tools read the same file
        await anyio.run_process(["skopeo", "copy", "-q", f"docker-archive:{tmp_path}/out:{ONE}", f"oci:{tmp_path}/docker:x"])


async def test_containerd_reads_it_and_what_containerd_writes_is_read(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        await export(store, tmp_path / "oci.tar", compression=Compression.ZSTD)
        await export(store, tmp_path / "docker.tar", format=Format.DOCKER, compression=Compression.NONE)
        ids = ids_of(store)
        with containerd(tmp_path / "containerd") as peer:
            for archive in ("docker.tar", "oci.tar"):
                await peer.images("import", "--snapshotter=native", str(tmp_path / archive))
                listed = await peer.images("ls", "-q")
                assert {ONE, TWO} <= set(listed.split()), archive
            await peer.images("export", str(tmp_path / "theirs.tar"), ONE, TWO)
        async with opened(tmp_path / "other") as other:
            await other.import_archive(tmp_path / "theirs.tar")
            assert ids_of(other) == ids


async def test_a_name_brings_itself_and_an_id_all_tags(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        one = store.find(ONE)
        assert one is not None
        await export(store, tmp_path / "name.tar", ONE)
        await export(store, tmp_path / "id.tar", one.id)
        async with opened(tmp_path / "other") as other:
            (image,) = await other.import_archive(tmp_path / "name.tar")
            assert image.repo_tags == [ONE]
            (image,) = await other.import_archive(tmp_path / "id.tar")
            assert image.repo_tags == ["example.com/also:1", ONE]
            (image,) = await other.import_archive(tmp_path / "id.tar", "example.com/third:1")
            assert "example.com/third:1" in image.repo_tags


async def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        out = tmp_path / "out"
        out.mkdir()
        with pytest.raises(NotFound, match="nowhere"):
            await export(store, out / "a.tar", ONE, "example.com/nowhere:1")
        with pytest.raises(InvalidRequest, match="no directory"):
            await export(store, out / "absent" / "a.tar")
        with pytest.raises(InvalidRequest, match="plain layers"):
            await export(store, out / "a.tar", format=Format.DOCKER)
        (out / "a.tar").write_text("mine")
        with pytest.raises(AlreadyExists):
            await export(store, out / "a.tar")
        assert (out / "a.tar").read_text() == "mine"
        await export(store, out / "a.tar", replace=True)
        assert tarfile.is_tarfile(out / "a.tar")
        assert os.listdir(out) == ["a.tar"]


async def test_a_layer_that_names_a_file_twice_is_refused_and_one_that_is_damaged(tmp_path: Path) -> None:
    with Layout(tmp_path / "more") as made:
        made.image("example.com/twice:1", [tar([Entry("a", b"1"), Entry("a", b"2")])])
    async with filled(tmp_path) as store:
        await store.import_archive(tmp_path / "more")
        with pytest.raises(Unsupported, match="names a file twice"):
            await export(store, tmp_path / "a.tar", "example.com/twice:1")
        (details,) = (await store.administration.inspect(ONE)).layers
        with (details.directory / "fs" / "etc" / "of").open("r+b") as file:
            file.write(b"S")
        with pytest.raises(CorruptData, match=r"is damaged.*check --full --repair"):
            await export(store, tmp_path / "a.tar", TWO)
        os.unlink(details.directory / "fs" / "etc" / "of")
        os.symlink("/etc/hostname", details.directory / "fs" / "etc" / "of")
        with pytest.raises((CorruptData, HostError)):
            await export(store, tmp_path / "a.tar", TWO)
        assert not (tmp_path / "a.tar").exists()
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    syscalls.mount("tmpfs", path, "tmpfs", 0, "size=1m")
    yield path
    mounts._unmount_tree(path)


@pytest.mark.parametrize("format", [Format.OCI, Format.OCI_DIR])
async def test_a_full_disk_is_said_and_left_empty(tmp_path: Path, small_disk: Path, format: Format) -> None:
    async with filled(tmp_path) as store:
        with pytest.raises(HostError, match="No space left"):
            await export(store, small_disk / "a", format=format, compression=Compression.NONE)
        assert os.listdir(small_disk) == []
        assert os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks


@pytest.mark.parametrize("format", [Format.OCI, Format.OCI_DIR])
async def test_whoever_leaves_leaves_nothing(tmp_path: Path, format: Format) -> None:
    with Layout(tmp_path / "big") as made:
        made.image("example.com/big:1", [tar([Entry("zeros", bytes(300_000_000))])])
    out = tmp_path / "out"
    out.mkdir()
    async with filled(tmp_path) as store:
        await store.import_archive(tmp_path / "big")
        progress = ExportProgress()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: export(store, out / "a", "example.com/big:1", format=format, progress=progress))
            with anyio.fail_after(30):
                while not any(0 < layer.received < layer.size for layer in progress.show()):
                    await anyio.sleep(0.001)
            group.cancel_scope.cancel()
        assert os.listdir(out) == []
        await export(store, out / "a", "example.com/big:1", format=format)
        assert os.listdir(out) == ["a"]


async def test_an_image_that_is_removed_meanwhile_is_still_written(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        one = store.find(ONE)
        assert one is not None
        progress = ExportProgress()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: export(store, tmp_path / "a.tar", ONE, progress=progress))
            with anyio.fail_after(30):
                while not progress.current:
                    await anyio.sleep(0)
            await store.remove(one.id)
            await store.remove(TWO)
        assert store.list() == []
        (again,) = await store.import_archive(tmp_path / "a.tar")
        assert again.id == one.id
        assert (await store.check(True)).clean


async def test_a_name_with_somebody_elses_digest_is_refused(tmp_path: Path) -> None:
    with Layout(tmp_path / "lie") as made:
        made.image(f"example.com/a@sha256:{'0' * 64}", [_TOP])
    async with opened(tmp_path / "store") as store:
        with pytest.raises(CorruptData, match="that image's digest is"):
            await store.import_archive(tmp_path / "lie")
        assert store.list() == []


async def test_prune_takes_what_nobody_uses(tmp_path: Path) -> None:
    target = tmp_path / "rootfs"
    target.mkdir()
    async with filled(tmp_path) as store:
        one, two = store.find(ONE), store.find(TWO)
        assert one is not None
        assert two is not None
        await store.mount_rootfs("c1", one.id, target)
        admin = store.administration
        assert (await admin.prune(every=False)).images == []
        dry = await admin.prune(every=True, dry_run=True)
        assert [item.image.id for item in dry.images] == [two.id]
        assert len(store.list()) == 2
        done = await admin.prune(every=True)
        assert [item.image.id for item in done.images] == [two.id]
        assert done.layers == 1
        assert done.freed_bytes > 0
        assert [(item.image.id, item.used_by) for item in admin.list()] == [(one.id, ["c1"])]
        await store.remove_rootfs("c1", target)
        with Layout(tmp_path / "moved") as made:
            made.image(ONE, [_TOP])
            made.image("example.com/also:1", [_TOP])
        await store.import_archive(tmp_path / "moved")
        lost = await admin.prune(every=False)
        assert [item.image.id for item in lost.images] == [one.id], "both its names are another image's now"
