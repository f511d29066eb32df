"""Directories made inside a root: links of the image stay in it, and nothing is ever made outside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bridge.errors import HostError, InvalidRequest
from bridge.host import rootfs_dirs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with links of all kinds."""
    top = tmp_path / "root"
    (top / "app" / "real").mkdir(parents=True)
    (top / "file").touch()
    (top / "relative").symlink_to("app/real")
    (top / "absolute").symlink_to("/app")
    (top / "out").symlink_to(f"../../../../../..{tmp_path}/outside")
    (top / "host").symlink_to(f"{tmp_path}/outside")
    (top / "chain").symlink_to("absolute/../relative")
    (top / "loop").symlink_to("loop")
    (top / "fd").symlink_to("/proc/self/fd/7")
    (top / "late").symlink_to("/data/app")
    (tmp_path / "outside").mkdir()
    return top


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/", "/"),
        ("/app", "/app"),
        ("//app/./x/../real/", "/app/real"),
        ("/relative/new", "/app/real/new"),
        ("/absolute/real", "/app/real"),
        ("/chain", "/app/real"),
        ("/../../etc", "/etc"),
        ("/fd", "/proc/self/fd/7"),
        ("/late/new", "/data/app/new"),
        ("/new/deep", "/new/deep"),
        ("/file/x", "/file/x"),
    ],
)
async def test_links_are_followed_inside(root: Path, path: str, real: str) -> None:
    assert await rootfs_dirs.follow(root, path) == real


async def test_a_loop(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="/loop in the container's root can't be a directory"):
        await rootfs_dirs.follow(root, "/loop")


async def test_made_with_parents(root: Path) -> None:
    mask = os.umask(0o077)
    try:
        await rootfs_dirs.make(root, "/new/deep")
    finally:
        os.umask(mask)
    for made in (root / "new", root / "new" / "deep"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o755
    await rootfs_dirs.make(root, "/new/deep")
    (root / "app").chmod(0o700)
    await rootfs_dirs.make(root, "/app/real")
    assert stat.S_IMODE((root / "app").stat().st_mode) == 0o700  # what is there stays as it is


@pytest.mark.parametrize("path", ["/file", "/file/x"])
async def test_something_else_is_in_the_way(root: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="can't be a directory: Not a directory"):
        await rootfs_dirs.make(root, path)


@pytest.mark.parametrize("name", ["out", "host"])
async def test_nothing_is_made_outside(root: Path, name: str) -> None:
    """Links to the host stay inside, and one that comes into being after they were followed is refused."""
    real = await rootfs_dirs.follow(root, f"/{name}/made")
    assert real.endswith("/outside/made")
    await rootfs_dirs.make(root, real)
    assert not list((root.parent / "outside").iterdir())
    assert root.joinpath(real.lstrip("/")).is_dir()
    with pytest.raises(InvalidRequest):
        await rootfs_dirs.make(root, f"/{name}/made")


async def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        await rootfs_dirs.follow(tmp_path / "absent", "/x")
