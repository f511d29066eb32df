"""Images as volumes on real overlayfs: read-only, whole or in part, never a way out of the image, and kept while they are used."""

from __future__ import annotations

import contextlib
import errno
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.aio import Supervisor
from bridge.errors import InUse, InvalidRequest, NotFound
from bridge.host import mounts, syscalls
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, directory, symlink, tar

pytestmark = pytest.mark.root

_BASE = tar([
    directory("etc"), Entry("etc/passwd", b"of the image"), directory("data"), Entry("data/file", b"1"), Entry("data/gone", b""),
    directory("opaque"), Entry("opaque/old", b""), symlink("absolute", "/etc"), symlink("up", "../../../../../../../../etc"),
    symlink("loop", "loop"), Entry("pipe", type=tarfile.FIFOTYPE), symlink("to-file", "data/file"),
])  # fmt: skip
_TOP = tar([Entry("data/.wh.gone"), Entry("data/new", b"2"), Entry("opaque/.wh..wh..opq"), Entry("opaque/new", b"")])


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root), supervisor) as store:
        yield store


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    with Layout(tmp_path / "layout") as made:
        made.image("example.com/one:1", [_BASE])
        made.image("example.com/two:1", [_BASE, _TOP])
        made.image("example.com/none:1", [])
    return tmp_path / "layout"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bundle"
    path.mkdir()
    yield path
    mounts._unmount_tree(path)


def ident(store: ImageStore, name: str) -> str:
    found = store.find(f"example.com/{name}:1")
    assert found is not None
    return found.id


def refused(path: Path) -> int | None:
    with pytest.raises(OSError) as failure:
        path.write_text("changed")
    return failure.value.errno


async def test_a_whole_image_with_what_upper_layers_hide(tmp_path: Path, layout: Path, place: Path) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        await store.mount_volume("c", ident(store, "two"), place / "v" / "0")
        volume = place / "v" / "0"
        assert sorted(os.listdir(volume / "data")) == ["file", "new"]
        assert os.listdir(volume / "opaque") == ["new"]
        assert refused(volume / "data" / "file") == refused(volume / "more") == errno.EROFS


async def test_not_even_a_remount_makes_a_shared_layer_writable(tmp_path: Path, layout: Path, place: Path) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        for name in ("one", "two", "none"):
            await store.mount_volume("c", ident(store, name), place / name)
            for flags in (syscalls.MS_REMOUNT | syscalls.MS_BIND, syscalls.MS_REMOUNT):
                with contextlib.suppress(OSError):
                    syscalls.mount("", place / name, "", flags)
            assert refused(place / name / "more") == errno.EROFS
        assert os.listdir(place / "none") == []


@pytest.mark.parametrize(
    ("sub_path", "holds"),
    [
        ("data", "file"), ("./data//", "file"), ("data/.", "file"), ("etc", "passwd"),
        ("absolute", "passwd"), ("up", "passwd"), ("../../../../../../../../etc", "passwd"), ("/etc", "passwd"),
    ],
)  # fmt: skip
async def test_a_part_lies_in_the_image_whatever_its_path_says(
    tmp_path: Path, layout: Path, place: Path, sub_path: str, holds: str
) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        await store.mount_volume("c", ident(store, "one"), place / "0", sub_path)
        assert holds in os.listdir(place / "0")
        if holds == "passwd":
            assert (place / "0" / "passwd").read_text() == "of the image"
        assert refused(place / "0" / "more") == errno.EROFS
        assert os.listdir(place) == ["0"], "only the part stays mounted"
        assert [mount.target for mount in mounts.below(mounts.read_mountinfo(), place)] == [str(place / "0")]


@pytest.mark.parametrize("sub_path", ["data/file", "to-file"])
async def test_a_part_may_be_a_file(tmp_path: Path, layout: Path, place: Path, sub_path: str) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        await store.mount_volume("c", ident(store, "two"), place / "0", sub_path)
        assert (place / "0").read_text() == "1"
        assert refused(place / "0") == errno.EROFS


@pytest.mark.parametrize(
    ("sub_path", "error", "words"),
    [
        ("absent", NotFound, "'absent' does not exist in the image"),
        ("data/file/below", NotFound, "does not exist"),
        ("data/gone", NotFound, "does not exist"),
        ("loop", InvalidRequest, "can't be followed"),
        ("pipe", InvalidRequest, "neither a directory nor a regular file"),
    ],
)
async def test_what_can_be_no_volume_leaves_nothing_mounted(
    tmp_path: Path, layout: Path, place: Path, sub_path: str, error: type[Exception], words: str
) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        with pytest.raises(error, match=words):
            await store.mount_volume("c", ident(store, "two"), place / "0", sub_path)
        assert mounts.below(mounts.read_mountinfo(), place) == []


async def test_an_image_stays_while_a_volume_uses_it_also_after_a_restart(tmp_path: Path, layout: Path, place: Path) -> None:
    async with opened(tmp_path / "store") as store:
        await store.import_archive(layout)
        await store.mount_volume("c1", ident(store, "one"), place / "0", "etc")
        with pytest.raises(NotFound):
            await store.mount_volume("c1", "sha256:" + "0" * 64, place / "1")
    async with opened(tmp_path / "store") as store:
        assert store.containers() == ["c1"]
        with pytest.raises(InUse, match="c1"):
            await store.remove("example.com/one:1")
        with pytest.raises(InUse, match="c1"):
            await store.remove(ident(store, "one"))
        assert (place / "0" / "passwd").read_text() == "of the image"
        mounts._unmount_tree(place)
        await store.remove_rootfs("c1", place / "rootfs")
        await store.remove("example.com/one:1")
        assert store.find("example.com/one:1") is None
        assert store.containers() == []
