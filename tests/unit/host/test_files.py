"""Small file-system steps; above all: removal never reaches through a mount."""

import os
import subprocess
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import files, mounts


async def test_write_and_read(tmp_path: Path) -> None:
    await files.write_files(tmp_path / "d", {"a": "1\n", "b": ""})
    assert await files.read_text(tmp_path / "d" / "a") == "1\n"
    assert await files.read_text(tmp_path / "d" / "absent") == ""
    assert (tmp_path / "d" / "a").stat().st_mode & 0o777 == 0o644


async def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a"
    await files.replace(target, "one\n")
    (tmp_path / "victim").write_text("mine")
    target.unlink()
    target.symlink_to(tmp_path / "victim")
    (tmp_path / "new" / ".a.new").symlink_to(tmp_path / "victim")  # what a crash left, or somebody else
    await files.replace(target, "two\n", mode=0o600)
    assert (target.read_text(), target.is_symlink(), target.stat().st_mode & 0o777) == ("two\n", False, 0o600)
    assert (tmp_path / "victim").read_text() == "mine"
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="can't make directory"):
        await files.replace(tmp_path / "file" / "a", "three\n")


async def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(HostError, match="can't write"):
        await files.write_files(tmp_path / "d", {"a": "theirs"})
    assert (tmp_path / "victim").read_text() == "mine"


async def test_remove_tree(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    (top / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(top / "fifo")
    await files.remove_tree(top)
    assert not top.exists()
    assert (tmp_path / "outside" / "kept").exists()
    await files.remove_tree(top)


@pytest.mark.root
async def test_remove_tree_stops_at_a_mount_of_the_same_file_system(tmp_path: Path) -> None:
    volume, inside = tmp_path / "volume", tmp_path / "top" / "inside"
    volume.mkdir()
    (volume / "precious").write_text("x")
    inside.mkdir(parents=True)
    subprocess.run(["mount", "--bind", volume, inside], check=True)
    try:
        with pytest.raises(HostError, match="still mounted") as caught:
            await files.remove_tree(tmp_path / "top")
        assert caught.value.errno is not None
        assert (volume / "precious").exists()
    finally:
        await mounts.unmount_tree(tmp_path)
    await files.remove_tree(tmp_path / "top")
    assert (volume / "precious").exists()


@pytest.mark.root
async def test_a_file_that_is_a_mount_point_is_kept(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "pin").touch()
    (tmp_path / "source").write_text("x")
    subprocess.run(["mount", "--bind", tmp_path / "source", top / "pin"], check=True)
    try:
        with pytest.raises(HostError, match="still mounted"):
            await files.remove_tree(top)
    finally:
        await mounts.unmount_tree(tmp_path)


async def test_make_dir_and_mount_points(tmp_path: Path) -> None:
    await files.make_dir(tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y").is_dir()
    await files.make_mount_point(tmp_path / "m" / "0", directory=True)
    await files.make_mount_point(tmp_path / "m" / "1", directory=False)
    assert (tmp_path / "m" / "0").is_dir()
    assert (tmp_path / "m" / "1").read_bytes() == b""
    with pytest.raises(HostError, match="can't make"):
        await files.make_mount_point(tmp_path / "m" / "1" / "2", directory=False)
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="can't make directory"):
        await files.make_dir(tmp_path / "file" / "y")


@pytest.mark.root
async def test_tmpfs(tmp_path: Path) -> None:
    await files.mount_tmpfs(tmp_path / "shm", size=1 << 20)
    try:
        found = [mount for mount in mounts.read_mountinfo() if mount.target == str(tmp_path / "shm")]
        assert len(found) == 1
        assert os.statvfs(tmp_path / "shm").f_blocks * os.statvfs(tmp_path / "shm").f_frsize == 1 << 20
    finally:
        await mounts.unmount(tmp_path / "shm")
