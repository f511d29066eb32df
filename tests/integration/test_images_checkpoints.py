"""Files of checkpoints on real overlayfs: what a writable layer changed is written down, and done to another one; nobody is led astray."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.aio import Supervisor
from bridge.errors import CorruptData, InvalidRequest, NotFound
from bridge.host import mounts
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, directory, symlink, tar

pytestmark = pytest.mark.root

_BASE = tar([
    directory("etc"), Entry("etc/passwd", b"of the image"), directory("data"), Entry("data/keep", b"1"), Entry("data/gone", b""),
    directory("old"), Entry("old/a", b""), Entry("old/b", b""), symlink("link", "etc"),
])  # fmt: skip


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root), supervisor) as store:
        yield store


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    found = tmp_path / "one", tmp_path / "two"
    for path in found:
        path.mkdir()
    yield found
    for path in found:
        mounts._unmount_tree(path)


@asynccontextmanager
async def standing(tmp_path: Path, places: tuple[Path, Path]) -> AsyncIterator[ImageStore]:
    """A store in which containers c1 and c2 stand on the same image, mounted at ``places``."""
    with Layout(tmp_path / "layout") as made:
        made.image("example.com/one:1", [_BASE])
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        for name, place in zip(("c1", "c2"), places, strict=True):
            await store.mount_rootfs(name, image.id, place)
        yield store
        for name, place in zip(("c1", "c2"), places, strict=True):
            await store.remove_rootfs(name, place)


def change(root: Path) -> None:
    (root / "etc" / "passwd").write_text("changed")
    (root / "data" / "gone").unlink()
    (root / "data" / "new").write_bytes(b"\xff" * 5000)
    os.link(root / "data" / "new", root / "data" / "same")
    os.chown(root / "data" / "new", 7, 8)
    (root / "data" / "new").chmod(0o4755)
    os.setxattr(root / "data" / "new", "user.note", b"\xff\0x")
    (root / "data" / "to").symlink_to("/etc/passwd")
    os.mkfifo(root / "data" / "pipe")
    (root / "old" / "a").unlink()
    (root / "old" / "b").unlink()
    (root / "old").rmdir()
    (root / "old").mkdir(0o700)  # opaque now
    (root / "old" / "c").write_text("c")
    (root / "Grüße").write_text("näh")


def looks(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else str(path.readlink()) if path.is_symlink() else b""
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink  # overlayfs counts those of a merged directory its own way
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, links, status.st_mtime_ns, content)
    return found


def nearly(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Without times: whoever writes into a tar by seconds and nanoseconds loses a few."""
    return {name: (*each[:4], each[5]) for name, each in found.items()}


async def test_the_changes_of_one_are_done_to_another(tmp_path: Path, places: tuple[Path, Path]) -> None:
    async with standing(tmp_path, places) as store:
        change(places[0])
        made = await store.checkpoints.begin("c1")
        await store.checkpoints.write_diff("c1", made)
        assert set(json.loads((made / "deleted.files").read_text())) == {"/data/gone", "/old/a", "/old/b"}
        await store.checkpoints.apply(made, places[1])
        assert nearly(looks(places[1])) == nearly(looks(places[0]))
        assert os.getxattr(places[1] / "data" / "new", "user.note") == b"\xff\0x"
        when = (places[0] / "data" / "keep").stat().st_mtime_ns, (places[0] / "data" / "new").stat().st_mtime_ns
        then = (places[1] / "data" / "keep").stat().st_mtime_ns, (places[1] / "data" / "new").stat().st_mtime_ns
        assert [abs(a - b) < 1000 for a, b in zip(when, then, strict=True)] == [True, True]
        await store.checkpoints.end("c1")
        assert not made.exists()


async def test_an_archive_and_back(tmp_path: Path, places: tuple[Path, Path]) -> None:
    async with standing(tmp_path, places) as store:
        made = await store.checkpoints.begin("c1")
        (made / "checkpoint").mkdir()
        (made / "checkpoint" / "pages-1.img").write_bytes(b"p" * 100_000)
        (made / "config.dump").write_text("{}")
        target = tmp_path / "out.tar"
        target.write_text("an older one")
        await store.checkpoints.pack(made, target)
        assert (stat.S_IMODE(target.stat().st_mode), list(tmp_path.glob(".out*"))) == (0o600, [])
        back = await store.checkpoints.unpack("c3", target)
        assert (back / "checkpoint" / "pages-1.img").read_bytes() == b"p" * 100_000
        await store.remove_rootfs("c3", tmp_path / "nowhere")
        assert not back.exists()
        again = await store.checkpoints.unpack("pod", target)
        await store.checkpoints.end("pod")
        assert not again.parent.parent.exists()


async def test_containerds_difference_is_compressed_and_has_whiteouts(tmp_path: Path, places: tuple[Path, Path]) -> None:
    async with standing(tmp_path, places) as store:
        made = await store.checkpoints.begin("c1")
        entries = [Entry("data/.wh.gone"), directory("old"), Entry("old/.wh..wh..opq"), Entry("old/c", b"c"), Entry("link/new", b"inside")]
        (made / "rootfs-diff.tar").write_bytes(gzip.compress(tar(entries)))
        await store.checkpoints.apply(made, places[1])
        assert not (places[1] / "data" / "gone").exists()
        assert os.listdir(places[1] / "old") == ["c"]
        assert (places[1] / "etc" / "new").read_text() == "inside"  # a link within the root file system leads within it


async def test_an_image_that_holds_a_checkpoint(tmp_path: Path) -> None:
    files = tar([Entry("config.dump", b"{}"), directory("checkpoint"), Entry("checkpoint/pages-1.img", b"p")])
    with Layout(tmp_path / "layout") as made:
        made.image("example.com/held:1", [files], annotations={"io.kubernetes.cri-o.checkpoint": "app"})
        made.image("example.com/plain:1", [_BASE])
    async with opened(tmp_path / "store") as store:
        await store.import_archive(tmp_path / "layout")
        held, plain = (store.find(f"example.com/{name}:1") for name in ("held", "plain"))
        assert held is not None
        assert plain is not None
        assert [await store.checkpoints.named(ident) for ident in (held.id, plain.id, "sha256:" + "0" * 64)] == ["app", "", ""]
        copied = await store.checkpoints.copy("c3", held.id)
        assert (copied / "checkpoint" / "pages-1.img").read_bytes() == b"p"
        with pytest.raises(CorruptData, match="neither a file nor a directory"):  # it has a link
            await store.checkpoints.copy("c4", plain.id)
        with pytest.raises(NotFound):
            await store.checkpoints.copy("c5", "sha256:" + "0" * 64)
        for name in ("c3", "c4"):
            await store.remove_rootfs(name, tmp_path / "nowhere")
        assert not copied.exists()


async def test_nothing_changed_is_nothing_to_do(tmp_path: Path, places: tuple[Path, Path]) -> None:
    async with standing(tmp_path, places) as store:
        before = looks(places[1])
        made = await store.checkpoints.begin("c1")
        await store.checkpoints.apply(made, places[1])
        await store.checkpoints.write_diff("c1", made)
        await store.checkpoints.apply(made, places[1])
        assert looks(places[1]) == before
        with pytest.raises(NotFound):
            await store.checkpoints.write_diff("stranger", made)


async def test_nobody_is_led_out_of_the_root_file_system(tmp_path: Path, places: tuple[Path, Path]) -> None:
    (tmp_path / "victim").write_text("mine")
    async with standing(tmp_path, places) as store:
        for number, entries in enumerate((
            [symlink("out", str(tmp_path)), Entry("out/victim", b"theirs")],
            [symlink("out", "../../../../../../../.."), Entry(f"out{tmp_path}/victim", b"theirs")],
            [Entry("../../victim", b"theirs")],
        )):  # fmt: skip
            made = await store.checkpoints.begin("c1")
            (made / "rootfs-diff.tar").write_bytes(tar(entries))
            (made / "deleted.files").write_text(json.dumps([f"/out{number}/../../victim", str(tmp_path / "victim"), "/out/victim"]))
            with pytest.raises(CorruptData) if number == 2 else pytest.raises(CorruptData, match=r"\.\.|directory"):
                await store.checkpoints.apply(made, places[1])
            assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.FIFOTYPE])
async def test_an_archive_with_links_is_refused(tmp_path: Path, places: tuple[Path, Path], kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("checkpoint/pages-1.img")
        member.type, member.linkname = kind, "/etc/shadow"
        archive.addfile(member)
    (tmp_path / "bad.tar").write_bytes(buffer.getvalue())
    async with standing(tmp_path, places) as store:
        with pytest.raises(CorruptData, match="neither a file nor a directory"):
            await store.checkpoints.unpack("c3", tmp_path / "bad.tar")
        await store.remove_rootfs("c3", tmp_path / "nowhere")


async def test_what_is_no_archive_is_refused(tmp_path: Path, places: tuple[Path, Path]) -> None:
    (tmp_path / "text").write_text("no archive at all, but some words that go on and on " * 20)
    os.mkfifo(tmp_path / "pipe")
    async with standing(tmp_path, places) as store:
        with pytest.raises(CorruptData):
            await store.checkpoints.unpack("c3", tmp_path / "text")
        await store.remove_rootfs("c3", tmp_path / "nowhere")
        with pytest.raises(InvalidRequest, match="is not a file"):
            await store.checkpoints.unpack("c4", tmp_path / "pipe")
        await store.remove_rootfs("c4", tmp_path / "nowhere")
        for text in ("{", '{"a": 1', "[1]"):
            made = await store.checkpoints.begin("c1")
            (made / "deleted.files").write_text(text)
            with pytest.raises(CorruptData, match=r"deleted\.files"):
                await store.checkpoints.apply(made, places[1])
