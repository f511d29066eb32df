"""Removal and measurement of trees: deep ones, wide ones, odd ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import syscalls
from bridge.images import disk


async def test_small_big_deep_and_absent_trees_are_removed(tmp_path: Path) -> None:
    small = tmp_path / "small/a/b"
    small.mkdir(parents=True)
    (small / "f").write_text("x")
    (small / "link").symlink_to("/etc")
    big = tmp_path / "big"
    big.mkdir()
    for number in range(disk._SMALL_TREE + 10):
        (big / str(number)).touch()
    deep = tmp_path / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (tmp_path / "file").write_text("x")
    for name in ("small", "big", "deep", "file", "none"):
        await disk.remove_tree(tmp_path / name)
    assert os.listdir(tmp_path) == []
    assert os.path.exists("/etc/passwd")


def test_usage_counts_blocks_and_each_inode_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x" * 10_000)
    os.link(tmp_path / "d/f", tmp_path / "again")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 30)
    size, inodes = disk.tree_usage(tmp_path)
    assert inodes == 4
    assert 10_000 < size < 100_000
    assert disk.tree_usage(tmp_path / "none") == (0, 0)


async def test_strays_are_moved_to_tmp_and_the_known_stay(tmp_path: Path) -> None:
    directories = disk.Directories(tmp_path / "root")
    await directories.prepare()
    for name in ("layers/1", "layers/2", "snapshots/a", "snapshots/b", "tmp/x"):
        (tmp_path / "root" / name).mkdir()
    graves = await directories.strays({"1"}, {"a"})
    assert len(graves) == 3
    assert os.listdir(directories.layers) == ["1"]
    assert os.listdir(directories.snapshots) == ["a"]
    assert await directories.discard(directories.layers / "none") is None


async def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(HostError):
        await disk.Directories(tmp_path / "root").prepare()


@pytest.fixture
def damaged(tmp_path: Path) -> disk.Directories:
    """Layer 7, whose files are to be replaced by those in ``tmp/fresh``."""
    directories = disk.Directories(tmp_path)
    for path, text in ((directories.layer(7), "damaged"), (directories.tmp / "fresh", "mended")):
        path.mkdir(parents=True)
        (path / "file").write_text(text)
    return directories


def _below(top: Path) -> dict[str, str]:
    return {path.parent.name.partition(".damaged-")[0]: path.read_text() for path in sorted(top.glob("*/file"))}


@pytest.mark.parametrize("unable", [0, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("keep", [False, True])
def test_a_mended_layer_takes_a_damaged_ones_place(
    damaged: disk.Directories, monkeypatch: pytest.MonkeyPatch, unable: int, keep: bool
) -> None:
    swap = syscalls.exchange

    def exchange(one: Path, other: Path) -> None:
        assert (damaged.layer(7) / "file").read_text() == "damaged", "it is there until the very moment"
        if unable:
            raise OSError(unable, os.strerror(unable))
        monkeypatch.setattr(os, "rename", None)  # nothing more is needed
        swap(one, other)

    monkeypatch.setattr(syscalls, "exchange", exchange)
    grave = damaged.replace_layer(damaged.tmp / "fresh", 7, keep=keep)
    assert (damaged.layer(7) / "file").read_text() == "mended"
    if keep:
        assert grave is None
        (aside,) = damaged.set_aside()
        assert (damaged.layers / aside / "file").read_text() == "damaged"
        assert os.listdir(damaged.tmp) == []
    else:
        assert grave is not None
        assert (grave / "file").read_text() == "damaged"
        assert os.listdir(damaged.tmp) == [grave.name]
        assert damaged.set_aside() == {}


@pytest.mark.parametrize("keep", [False, True])
def test_a_layer_that_the_disk_lost_and_one_that_can_not_be_replaced(
    damaged: disk.Directories, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    def exchange(one: Path, other: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(syscalls, "exchange", exchange)
    with pytest.raises(OSError, match="Input/output error"):
        damaged.replace_layer(damaged.tmp / "fresh", 7, keep=keep)
    assert (_below(damaged.layers), _below(damaged.tmp)) == ({"7": "damaged"}, {"fresh": "mended"}), "as before"
    (damaged.layer(7) / "file").unlink()
    damaged.layer(7).rmdir()
    assert damaged.replace_layer(damaged.tmp / "fresh", 7, keep=keep) is None
    assert (_below(damaged.layers), _below(damaged.tmp)) == ({"7": "mended"}, {})
