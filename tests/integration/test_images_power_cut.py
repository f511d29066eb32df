"""The power goes at any moment of the store's work, and the disk has kept of its cache what it likes: no committed layer is ever damaged.

All writes of a run on a real ext4 are recorded (recorded_disk.py). From the record, disks are made as they may be after a cut at each
point; each is mounted, which replays its journal, and the store is started on it. ``--cuts=1000`` tries more of them, ``--cuts=all`` each.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.aio import Supervisor
from bridge.errors import BridgeError
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, directory, hardlink, symlink, tar
from tests.integration.recorded_disk import Recording, make_file_system, mounted, recording

pytestmark = pytest.mark.root

_MEGABYTES = 24
_SAMPLE = 60
_LIES = 20
_WAYS = 4
"""At each point: once with all writes until then, else with some of the unflushed ones in some order."""

# What a store does in its life. Meanwhile something else on the file system commits its journal all the time, with whatever the
# store has renamed and removed by then, but without the data that the store has not synced.
_WORK = """
import os, sys, threading
sys.path[:0] = sys.argv[3].split(":")
from pathlib import Path
import anyio
from bridge.aio import Supervisor
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore

top, layouts = Path(sys.argv[1]), Path(sys.argv[2])
over = threading.Event()

def commit_often():
    fd = os.open(top / "other", os.O_WRONLY | os.O_CREAT)
    while not over.wait(0.002):
        os.utime(fd)
        os.fsync(fd)

def mark(name):
    print(name, flush=True)
    sys.stdin.readline()

async def main():
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(top / "store"), supervisor) as store:
        (first,) = await store.import_archive(layouts / "a")
        mark("a is in")
        await store.import_archive(layouts / "b")
        mark("b is in")
        (top / "root").mkdir()
        await store.mount_rootfs("c1", first.id, top / "root")
        (top / "root/new").write_bytes(b"n" * 10000)
        await store.remove_rootfs("c1", top / "root")
        mark("a goes")
        await store.remove("example.com/a:1")
        await store.import_archive(layouts / "c")
        mark("b goes")
        await store.remove("example.com/b:1")
        await anyio.sleep(0.1)
        number = store._catalogue.layers[first.chain_ids[0]].id
        mark("damage")
        with (top / f"store/layers/{number}/fs/base/0").open("r+b") as file:
            file.write(b"damage")
            os.fsync(file.fileno())
        assert not (await store.check(True)).clean
        mark("noticed")
        await store.import_archive(layouts / "c")
        mark("mended")
        assert (await store.check(True)).clean
        await store.remove("example.com/c:1")
        await anyio.sleep(0.1)
        await store.import_archive(layouts / "b")
        mark("b is back")
        await anyio.sleep(0.1)

thread = threading.Thread(target=commit_often)
thread.start()
try:
    anyio.run(main)
finally:
    over.set()
    thread.join()
"""


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ImageStore]:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root), supervisor) as store:
        yield store


def _files(prefix: str, count: int) -> list[Entry]:
    source = random.Random(prefix)
    return [Entry(f"{prefix}/{n}", source.randbytes(source.randrange(1, 30_000)), mtime=n, uid=n) for n in range(count)]


def write_layouts(path: Path) -> None:
    """Images a, b and c, which share their base; a has three layers."""
    base = tar([directory("base", 0o751), *_files("base", 12), hardlink("base/hard", "base/3"), symlink("link", "base/4")])
    tops = {
        "a": [tar([*_files("one", 5), Entry("base/.wh.1")]), tar(_files("two/deep", 4))],
        "b": [tar([*_files("three", 6), Entry("base/.wh..wh..opq")])],
        "c": [tar([*_files("base/own", 4)])],
    }
    for name, layers in tops.items():
        with Layout(path / name) as layout:
            layout.image(f"example.com/{name}:1", [base, *layers])


def looks(top: Path) -> str:
    """A digest of everything that can be seen of the files below ``top``. Its own, on purpose: it judges the store's."""
    found = []
    for directory_name, names, files in os.walk(top):
        for path in [directory_name, *(os.path.join(directory_name, name) for name in [*files, *names])]:
            info = os.lstat(path)
            content: object = None
            changed = info.st_mtime_ns if stat.S_ISREG(info.st_mode) else 0  # of what the archive does not list it is the time of unpacking
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            xattrs = [] if os.path.islink(path) else [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))]
            found.append((os.path.relpath(path, top), info.st_mode, info.st_uid, info.st_gid, changed, content, xattrs))
    return hashlib.sha256(repr(sorted(set(map(repr, found)))).encode()).hexdigest()


async def known_good(tmp_path: Path, layouts: Path) -> Mapping[str, str]:
    """What each layer looks like, by chain id, where nothing went wrong."""
    async with opened(tmp_path / "good") as store:
        for name in ("a", "b", "c"):
            await store.import_archive(layouts / name)
        return {y.chain_id: looks(tmp_path / f"good/layers/{y.id}/fs") for y in store._catalogue.layers.values()}


@dataclass(frozen=True)
class Life:
    """The record of one, and at which of its events each mark was made."""

    disk: Recording
    marks: Mapping[str, int]
    layouts: Path


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    path = tmp_path_factory.mktemp("life")
    write_layouts(path / "layouts")
    make_file_system(path / "first", _MEGABYTES)
    (path / "mnt").mkdir()
    sizes: dict[str, int] = {}
    with recording(path / "first", path) as (disk, log), mounted(disk, path / "mnt"):
        argv = [sys.executable, "-c", _WORK, str(path / "mnt"), str(path / "layouts"), ":".join(sys.path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as work:
            assert work.stdin is not None
            assert work.stdout is not None
            for line in work.stdout:
                sizes[line.strip()] = log.stat().st_size
                work.stdin.write("\n")
        assert work.returncode == 0
    made = Recording((path / "first").read_bytes(), log.read_bytes())
    return Life(made, {name: made.event_at(size) for name, size in sizes.items()}, path / "layouts")


async def judge(root: Path, good: Mapping[str, str], layouts: Path) -> tuple[set[str], set[str], set[str]]:
    """Start the store at ``root``; its images, the layers that these show, and the damaged layers, all of which a check must find.

    Then it must work.
    """
    async with opened(root) as store:
        images = {name for image in store.list() for name in image.repo_tags}
        shown = {chain_id for image in store.list() for chain_id in image.chain_ids}
        layers = store._catalogue.layers
        bad = {chain_id for chain_id, y in layers.items() if looks(root / f"layers/{y.id}/fs") != good[chain_id]}
        report = await store.check(True)
        assert (report.index, report.blobs) == ([], [])
        assert {damaged.chain_id for damaged in report.damaged} == bad
        assert set(os.listdir(root / "layers")) == {str(y.id) for y in layers.values()}, "a mended one takes a damaged one's place"
        for name in ("a", "c"):
            await store.import_archive(layouts / name)
        assert {chain_id: looks(root / f"layers/{y.id}/fs") for chain_id, y in layers.items()}.items() <= good.items()
    return images, shown, bad


def _expected(life: Life, cut: int) -> tuple[set[str], bool]:
    """Images whose import was over at that event and whose removal had not begun; whether a layer may be damaged."""
    at = life.marks
    spans = {"a": [("a is in", "a goes")], "b": [("b is in", "b goes"), ("b is back", "")]}
    there = {
        f"example.com/{name}:1" for name, times in spans.items() if any(at[first] <= cut <= at.get(last, cut) for first, last in times)
    }
    return there, at["damage"] < cut < at["mended"]


def chosen(life: Life, config: pytest.Config) -> list[tuple[int, int]]:
    """The cuts: (event, way). By default a sample that is the same for the same record, over the whole life."""
    wanted = config.getoption("--cuts") or _SAMPLE
    everything = [(cut, way) for cut in range(len(life.disk.events) + 1) for way in range(_WAYS)]
    return everything if wanted == "all" else random.Random(1).sample(everything, min(int(wanted), len(everything)))


async def test_no_layer_is_damaged_without_being_noticed(life: Life, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    good = await known_good(tmp_path, life.layouts)
    (tmp_path / "mnt").mkdir()
    damaged = 0
    for cut, way in chosen(life, pytestconfig):
        disk = tmp_path / f"disk-{cut}-{way}"  # never a name twice: a process elsewhere may have got a copy of the mount
        life.disk.image(disk, cut, random.Random(cut * _WAYS + way) if way else None)
        with mounted(disk, tmp_path / "mnt"):
            images, shown, bad = await judge(tmp_path / "mnt/store", good, life.layouts)
        disk.unlink()
        there, may_be_damaged = _expected(life, cut)
        assert there <= images, f"after event {cut} of {len(life.disk.events)}, way {way}"
        assert cut < life.marks["noticed"] or not bad & shown, f"after event {cut} of {len(life.disk.events)}, way {way}"
        assert may_be_damaged or not bad, f"after event {cut} of {len(life.disk.events)}, way {way}"
        damaged += bool(bad)
    assert damaged  # or the judge is blind: the life has a damage in it


async def test_a_disk_that_lies_about_its_flushes_is_found_out(life: Life, tmp_path: Path) -> None:
    """Then everything may be damaged: the file system, the index, any layer. What the store still shows must be what a check says."""
    good = await known_good(tmp_path, life.layouts)
    (tmp_path / "mnt").mkdir()
    source = random.Random(3)
    outcomes = Counter[str]()
    for number in range(_LIES):
        disk = tmp_path / f"disk-{number}"
        life.disk.image(disk, source.randrange(life.marks["b is in"], len(life.disk.events)), source, lost=source.choice((0.02, 0.2)))
        try:
            with mounted(disk, tmp_path / "mnt"):
                outcomes[await _honest(tmp_path / "mnt/store", good)] += 1
        except (subprocess.CalledProcessError, BridgeError, OSError):
            outcomes["can't be used"] += 1
        disk.unlink()
    assert outcomes["damaged"] > 0, outcomes


async def _honest(root: Path, good: Mapping[str, str]) -> str:
    async with opened(root) as store:
        report = await store.check(True)
        whole = {y.chain_id for y in store._catalogue.layers.values()} - {damaged.chain_id for damaged in report.damaged}
        for chain_id in whole:
            assert looks(root / f"layers/{store._catalogue.layers[chain_id].id}/fs") == good[chain_id]
        shown = {chain_id for image in store.list() for chain_id in image.chain_ids}
        assert shown <= whole
        return "whole" if report.clean else "damaged"
