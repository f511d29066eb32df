"""Removal and measurement of trees: deep ones, wide ones, odd ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.errors import HostError
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
