"""Damage of every kind is noticed, a damaged layer is fetched again alone, and containers that stand on it go on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import CorruptData
from bridge.host import mounts
from bridge.images.check import CheckProgress
from bridge.images.progress import LayerState
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, directory, hardlink, symlink, tar
from tests.integration.registry_node import Proxy, proxy, push, registry

pytestmark = pytest.mark.root

Damage = Callable[[Path], object]
_BASE = [
    directory("d", 0o750), Entry("d/data", b"x" * 70_000, uid=5, gid=6), Entry("d/empty", b""), hardlink("d/hard", "d/data"),
    symlink("link", "d/data"), Entry("own/child", b"child"), Entry(".wh.gone"), Entry("pipe", type=tarfile.FIFOTYPE),
    Entry("attributes", b"a", pax={"SCHILY.xattr.user.a": "b"}),
]  # fmt: skip
EXACT = tar(_BASE)
REPEATED = tar([Entry("d/data", b"first"), *_BASE])


@asynccontextmanager
async def opened(root: Path, **changes: object) -> AsyncIterator[ImageStore]:
    settings = replace(ImageSettings(root), **changes)  # type: ignore[arg-type]
    async with Supervisor() as supervisor, ImageStore.open(settings, supervisor) as store:
        yield store


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rootfs"
    path.mkdir()
    yield path
    mounts._unmount_tree(path)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Proxy]:
    """A registry behind a counting proxy, with one image ``app:1`` of three layers."""
    with Layout(tmp_path / "pushed") as layout:
        layout.image("example.com/app:1", [EXACT, tar([Entry("second", b"2" * 5000)]), tar([Entry("d/third", b"3")])])
    with registry(tmp_path / "registry") as host:
        await push(tmp_path / "pushed", "example.com/app:1", host, "app:1")
        async with proxy(host) as made:
            yield made


def flip(path: Path, at: int = 1000) -> None:
    """Change one bit, as a disk would: no time of modification tells."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unnoticed(path: Path, change: Callable[[], object]) -> None:
    """``change`` something in the directory ``path`` and put its time of modification back."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _relink(fs: Path) -> None:
    (fs / "link").unlink()
    (fs / "link").symlink_to("d/else")
    os.utime(fs / "link", ns=(0, 0), follow_symlinks=False)


def _swap(fs: Path) -> None:
    (fs / "d/empty").unlink()
    (fs / "d/empty").mkdir(0o644)
    os.utime(fs / "d/empty", ns=(0, 0))


CONTENT: dict[str, Damage] = {
    "a bit": lambda home: flip(home / "fs/d/data", 69_999),
    "zeros": lambda home: unnoticed(home / "fs/attributes", lambda: (home / "fs/attributes").write_bytes(b"\0")),
}
ATTRIBUTES: dict[str, Damage] = {
    "shorter": lambda home: os.truncate(home / "fs/d/data", 4096),
    "longer": lambda home: os.truncate(home / "fs/d/data", 70_001),
    "missing": lambda home: unnoticed(home / "fs/d", (home / "fs/d/empty").unlink),
    "added": lambda home: unnoticed(home / "fs/d", (home / "fs/d/new").touch),
    "added at the end": lambda home: unnoticed(home / "fs", (home / "fs/zzz").touch),
    "renamed": lambda home: unnoticed(home / "fs/d", lambda: (home / "fs/d/empty").rename(home / "fs/d/full")),
    "mode": lambda home: (home / "fs/d/data").chmod(0o4755),
    "owner": lambda home: os.chown(home / "fs/d/data", 0, 6),
    "owner of a link": lambda home: os.lchown(home / "fs/link", 1, 0),
    "time": lambda home: os.utime(home / "fs/d/data", ns=(0, 1)),
    "attribute": lambda home: os.setxattr(home / "fs/attributes", "user.a", b"c"),
    "another attribute": lambda home: os.setxattr(home / "fs/d/empty", "user.b", b"c"),
    "opaque": lambda home: os.setxattr(home / "fs/d", "trusted.overlay.opaque", b"y"),
    "link": lambda home: unnoticed(home / "fs", lambda: _relink(home / "fs")),
    "kind": lambda home: unnoticed(home / "fs/d", lambda: _swap(home / "fs")),
    "whiteout": lambda home: unnoticed(home / "fs", (home / "fs/gone").unlink),
    "directory that was not listed": lambda home: (home / "fs/own").chmod(0o700),
    "root": lambda home: os.chown(home / "fs", 9, 9),
    "everything": lambda home: shutil.rmtree(home / "fs"),
    "no files": lambda home: [shutil.rmtree(home / "fs"), (home / "fs").mkdir()],
    "all of it": lambda home: shutil.rmtree(home),
    "log": lambda home: flip(home / "tar.gz", 40),
    "no log": lambda home: (home / "tar.gz").unlink(),
    "listing": lambda home: flip(home / "files.gz", 60),
    "short listing": lambda home: os.truncate(home / "files.gz", 100),
    "no listing": lambda home: (home / "files.gz").unlink(),
}


async def test_a_whole_store_is_clean(tmp_path: Path) -> None:
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [EXACT, REPEATED, b"", tar([Entry("own/more", b"")]) + b"trailing"])
        layout.image("example.com/b:1", [EXACT], compression="zstd")
    async with opened(tmp_path / "store") as store:
        await store.import_archive(tmp_path / "layout")
        for full in (False, True):
            progress = CheckProgress()
            report = await store.check(full, progress)
            assert report.clean
            assert [(one.received, one.state) for one in progress.show()] == [(one.size, LayerState.DONE) for one in progress.show()]
            assert len(progress.show()) == report.layers
            assert (report.full, report.layers, report.damaged, report.index, report.blobs) == (full, 4, [], [], [])
            assert report.recounted == 0
        assert len(store.list()) == 2


@pytest.mark.parametrize("layer", [EXACT, REPEATED], ids=["exact", "repeated"])
@pytest.mark.parametrize("kind", [*CONTENT, *ATTRIBUTES])
async def test_damage_is_noticed(tmp_path: Path, layer: bytes, kind: str) -> None:
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [layer, tar([Entry("top", b"")])])
    async with opened(tmp_path / "store") as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        {**CONTENT, **ATTRIBUTES}[kind](tmp_path / "store/layers/1")
        quick = await store.check(False)
        assert quick.clean == (kind in CONTENT)
        report = await store.check(True)
        (found,) = report.damaged
        assert (found.chain_id, found.number, found.images) == (image.chain_ids[0], 1, ["example.com/a:1"])
        assert found.problems
        # Its image is to be pulled, or here imported, again: that makes it whole.
        assert store.list() == []
        assert store.find("example.com/a:1") is store.find(image.id) is None
        (again,) = await store.import_archive(tmp_path / "layout")
        assert again == image
        assert (await store.check(True)).clean
        assert sorted(os.listdir(tmp_path / "store/layers")) == ["1", "2"]


async def test_a_layer_is_listed_the_same_each_time(tmp_path: Path) -> None:
    """Else a power cut between a repair and its row would make a good layer look damaged."""
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [EXACT, REPEATED, tar([Entry("a/b/c", b""), Entry("d/e/f", b"")])])
    seen = set()
    for number in range(2):
        async with opened(tmp_path / f"store{number}") as store:
            await store.import_archive(tmp_path / "layout")
            seen.add(tuple(y.listing for y in store._catalogue.layers.values()))
    assert len(seen) == 1


async def test_what_is_known_to_be_damaged_outlives_a_restart_and_goes_with_the_image(tmp_path: Path) -> None:
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [EXACT])
    async with opened(tmp_path / "store") as store:
        await store.import_archive(tmp_path / "layout")
        flip(tmp_path / "store/layers/1/fs/d/data")
        assert not (await store.check(True)).clean
    async with opened(tmp_path / "store") as store:
        assert store.list() == []
        (failed,) = await store.repair()
        assert "import or pull it again" in failed.error or "RegistryUnavailable" in failed.error
        flip(tmp_path / "store/layers/1/fs/d/data")  # the same bit: it is whole again
        assert (await store.check(False)).clean
        assert store.list() == []
        assert (await store.check(True)).clean
        assert len(store.list()) == 1
        flip(tmp_path / "store/layers/1/fs/d/data")
        await store.check(True)
        await store.remove("example.com/a:1")
        assert (await store.check(True)).layers == 0


async def test_one_layer_is_fetched_again_alone(tmp_path: Path, served: Proxy, target: Path) -> None:
    name = f"{served.host}/app:1"
    async with opened(tmp_path / "store") as store:
        image = await store.pull(name)
        assert served.blobs() == 4
        assert await store.repair() == []
        await store.mount_rootfs("c1", image.id, target)
        (target / "own/child").write_text("changed by the container")
        flip(tmp_path / "store/layers/1/fs/d/data")
        (damaged,) = (await store.check(True)).damaged
        assert (damaged.images, damaged.containers) == ([name], ["c1"])
        served.requests.clear()
        (repaired,) = await store.repair()
        assert (repaired.image, repaired.names, repaired.error) == (image.id, [name], "")
        assert served.blobs() == 1
        assert store.find(name) == image
        assert (await store.check(True)).clean
        # The container goes on with the files that it has, until it is gone.
        assert (target / "d/data").stat().st_size == 70_000
        assert (target / "own/child").read_text() == "changed by the container"
        assert len([entry for entry in os.listdir(tmp_path / "store/layers") if ".damaged-" in entry]) == 1
    async with opened(tmp_path / "store") as store:
        assert len([entry for entry in os.listdir(tmp_path / "store/layers") if ".damaged-" in entry]) == 1
        await store.remount_rootfs("c1", target)
        await store.remove_rootfs("c1", target)
    async with opened(tmp_path / "store") as store:
        assert sorted(os.listdir(tmp_path / "store/layers")) == ["1", "2", "3"]
        assert (await store.check(True)).clean


async def test_a_layer_that_is_gone_when_it_is_mounted(tmp_path: Path, served: Proxy, target: Path) -> None:
    name = f"{served.host}/app:1"
    async with opened(tmp_path / "store") as store:
        image = await store.pull(name)
        (tmp_path / "store/layers/2/fs").rename(tmp_path / "lost")
        with pytest.raises(CorruptData, match=f"{image.chain_ids[1]}.*pull it again"):
            await store.mount_rootfs("c1", image.id, target)
        assert store.containers() == []
        assert store.find(name) is None
        served.requests.clear()
        assert await store.pull(name) == image
        assert served.blobs() == 1
        await store.mount_rootfs("c1", image.id, target)
        assert (target / "second").stat().st_size == 5000
        (tmp_path / "store/layers/2/fs").rename(tmp_path / "lost again")
        with pytest.raises(CorruptData, match="pull it again"):
            await store.mount_volume("c2", image.id, tmp_path / "volume")
        await store.remove_rootfs("c1", target)
        await store.remove_rootfs("c2", tmp_path / "volume")


async def test_a_damaged_manifest_and_counters(tmp_path: Path, served: Proxy) -> None:
    name = f"{served.host}/app:1"
    root = tmp_path / "store"
    async with opened(root) as store:
        image = await store.pull(name)
        usage = store.image_usage()
    with sqlite3.connect(root / "index.db") as connection:
        connection.execute("UPDATE blobs SET data = CAST(data || ' ' AS BLOB)")
        connection.execute("UPDATE layers SET disk_bytes = disk_bytes * 9, inodes = 1 WHERE id = 1")
    connection.close()
    async with opened(root) as store:
        report = await store.check(False)
        assert len(report.blobs) == 2
        assert not report.clean
        assert report.recounted == 1
        now = store.image_usage()
        assert (now.used_bytes, now.inodes_used) == (usage.used_bytes, usage.inodes_used)
        (repaired,) = await store.repair()
        assert repaired.error == ""
        assert (await store.check(True)).clean
        assert store.list() == [image]


async def test_a_repair_that_can_not_be_says_so(tmp_path: Path, served: Proxy) -> None:
    async with opened(tmp_path / "store") as store:
        await store.pull(f"{served.host}/app:1")
        flip(tmp_path / "store/layers/1/fs/d/data")
        await store.check(True)
        served.tamper = lambda path, body: b"x" * len(body) if "/blobs/" in path else body
        (failed,) = await store.repair()
        assert "archive is refused" in failed.error
        assert "asked with the server's own credentials; cri-bridge image pull --creds mends it" in failed.error
        assert store.list() == []
        served.tamper = lambda path, body: body
        (repaired,) = await store.repair()
        assert repaired.error == ""
        assert len(store.list()) == 1


async def test_layers_are_verified_in_the_background(tmp_path: Path) -> None:
    with Layout(tmp_path / "layout") as layout:
        layout.image("example.com/a:1", [EXACT, tar([Entry("f", os.urandom(300_000))])])
    root = tmp_path / "store"
    async with opened(root) as store:
        await store.import_archive(tmp_path / "layout")
        flip(root / "layers/2/fs/f")
    async with opened(root) as store:
        await anyio.sleep(0)
        assert len(store.list()) == 1
    async with opened(root, verify_days=1e-9, verify_rate=1 << 20) as store:
        with anyio.fail_after(30):
            while store.list():
                await anyio.sleep(0.02)
        assert set(store._catalogue.faults) == {2}
