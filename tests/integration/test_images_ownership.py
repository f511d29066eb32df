"""Root filesystems as a user namespace sees them: owners on both sides, shared layers untouched, nothing left mounted."""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.aio import Supervisor
from bridge.errors import NotFound
from bridge.host import mount_copies, mounts, namespaces, syscalls
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.ports.images import Image
from bridge.testing.images import Entry, Layout, tar

pytestmark = pytest.mark.root

UID, GID = 100000, 300000
MAPS = IdMaps((IdRange(0, UID, 65536),), (IdRange(0, GID, 65536),))


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root=root), supervisor) as store:
        yield store


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mounts._unmount_tree(tmp_path)


@pytest.fixture
async def pin(place: Path) -> Path:
    return (await namespaces.create(place / "ns", net=False, ipc=False, uts=False, hostname="", sysctls={}, user=MAPS))["user"]


async def imported(store: ImageStore, place: Path, layers: list[bytes]) -> Image:
    with Layout(place / "layout") as layout:
        layout.image("localhost/owned:latest", layers)
    (image,) = await store.import_archive(place / "layout")
    return image


def layers() -> list[bytes]:
    first = [Entry("home", type=tarfile.DIRTYPE, mode=0o700, uid=7, gid=8), Entry("root", b"x")]
    return [tar(first), tar([Entry("home/file", b"y", uid=7, gid=8), Entry("far", b"z", uid=70000, gid=0)])]


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def views(place: Path) -> list[str]:
    return [
        mount.target for mount in mounts.read_mountinfo() if mount.target.startswith(f"{place}/store") and mount.target.endswith("/view")
    ]


async def test_owners_of_the_layers_and_of_what_is_written(place: Path, pin: Path) -> None:
    async with opened(place / "store") as store:
        assert store.id_mapping_fault == ""
        image = await imported(store, place, layers())
        target = place / "rootfs"
        target.mkdir()
        rootfs = await store.mount_rootfs("c1", image.id, target, user_namespace=pin)
        assert [owner(target / name) for name in (".", "home", "home/file", "root")] == [
            (UID, GID),
            (UID + 7, GID + 8),
            (UID + 7, GID + 8),
            (UID, GID),
        ]
        assert owner(target / "far")[0] == 65534, "nobody's, as the mapping does not reach it"
        assert owner(rootfs.upper) == (UID, GID)
        (target / "home/file").write_text("changed")
        assert owner(rootfs.upper / "home/file") == (UID + 7, GID + 8), "copied up with the owner it was seen with"
        assert views(place) == []
        assert await store.mount_rootfs("c1", image.id, target, user_namespace=pin) == rootfs
        plain = place / "plain"
        plain.mkdir()
        await store.mount_rootfs("c2", image.id, plain)
        assert (owner(plain / "home/file"), (plain / "home/file").read_text()) == ((7, 8), "y"), "the layers are as they were"
        for container, path in (("c1", target), ("c2", plain)):
            await store.remove_rootfs(container, path)
        assert os.listdir(place / "store/snapshots") == []


async def test_an_image_without_layers(place: Path, pin: Path) -> None:
    async with opened(place / "store") as store:
        image = await imported(store, place, [])
        target = place / "rootfs"
        target.mkdir()
        await store.mount_rootfs("c1", image.id, target, user_namespace=pin)
        assert owner(target) == (UID, GID)
        await store.remove_rootfs("c1", target)
        assert views(place) == []


async def test_a_failed_mount_leaves_nothing(place: Path, pin: Path) -> None:
    async with opened(place / "store") as store:
        image = await imported(store, place, layers())
        with pytest.raises(NotFound, match="no user namespace is pinned"):
            await store.mount_rootfs("c1", image.id, place / "rootfs", user_namespace=place / "absent")
        with pytest.raises(Exception, match="rootfs"):
            await store.mount_rootfs("c2", image.id, place / "rootfs", user_namespace=pin)
        assert (views(place), os.listdir(place / "store/snapshots"), store.containers()) == ([], [], [])


@pytest.mark.parametrize("known", [True, False])
async def test_a_view_that_a_crash_left_never_takes_the_layers_with_it(place: Path, pin: Path, *, known: bool) -> None:
    target = place / "rootfs"
    target.mkdir()
    async with opened(place / "store") as store:
        image = await imported(store, place, layers())
        container = "c1" if known else "stranger"
        home = place / "store/snapshots" / container
        if known:
            await store.mount_rootfs("c1", image.id, target, user_namespace=pin)
        (home / "view").mkdir(parents=True, exist_ok=True)
        descriptor = namespaces.open_pin(pin, "user")
        await mount_copies.attach(place / "store/layers", home / "view", recursive=False, read_only=True, user_namespace=descriptor)
        os.close(descriptor)
        with pytest.raises(OSError, match="Read-only"):
            next((home / "view").glob("*/fs/root")).unlink()
    async with opened(place / "store") as store:
        if known:
            await store.remove_rootfs("c1", target)
        assert views(place) == []
        assert not home.exists()
        await store.mount_rootfs("c2", image.id, target)
        assert (target / "home/file").read_text() == "y"
        await store.remove_rootfs("c2", target)


async def test_a_file_system_without_id_mapped_mounts_is_told(place: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (place / name).mkdir()
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    syscalls.mount("overlay", place / "merged", "overlay", 0, options)
    async with opened(place / "merged/store") as store:
        assert f"{place}/merged/store/layers" in store.id_mapping_fault
        assert "Invalid argument" in store.id_mapping_fault
    assert not [mount for mount in mounts.read_mountinfo() if "/view" in mount.target and str(place) in mount.target]
