"""Reading inside a root that tries to lead out of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.errors import InvalidRequest, LimitExceeded
from bridge.host.rootfs import check_mount_points, read_accounts, read_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem; beside it lies what must never be read."""
    (tmp_path / "secret").write_bytes(b"host")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "secret").write_bytes(b"container")
    return inside


def _link(root: Path, name: str, target: str) -> str:
    (root / "etc" / name).symlink_to(target)
    return f"/etc/{name}"


@pytest.mark.parametrize("target", ["/secret", "../secret", "../../secret", "../../../../../../secret", "/../secret", "/etc/../../secret"])
def test_links_stay_inside(root: Path, target: str) -> None:
    assert read_file(root, _link(root, "passwd", target), 100) == b"container"


def test_a_link_in_the_directory_part_stays_inside(root: Path) -> None:
    (root / "up").symlink_to("../..")
    assert read_file(root, "/up/up/secret", 100) == b"container"


def test_a_link_to_a_host_path_is_absent(root: Path) -> None:
    assert read_file(root, _link(root, "passwd", str(root.parent / "secret")), 100) is None


def test_magic_links_are_not_followed(root: Path) -> None:
    with pytest.raises(InvalidRequest):
        read_file(Path("/"), "/proc/self/exe", 100)
    assert read_file(root, "/proc/self/exe", 100) is None


def test_loops_and_absence(root: Path) -> None:
    assert read_file(root, "/etc/passwd", 100) is None
    assert read_file(root, "/secret/below/a/file", 100) is None
    with pytest.raises(InvalidRequest):
        read_file(root, _link(root, "loop", "/etc/loop"), 100)


def test_what_is_no_file_never_waits(root: Path) -> None:
    os.mkfifo(root / "etc" / "passwd")
    with pytest.raises(InvalidRequest):
        read_file(root, "/etc/passwd", 100)
    with pytest.raises(InvalidRequest):
        read_file(root, "/etc", 100)


def test_limit(root: Path) -> None:
    (root / "etc" / "passwd").write_bytes(b"x" * 100)
    assert read_file(root, "/etc/passwd", 100) == b"x" * 100
    with pytest.raises(LimitExceeded):
        read_file(root, "/etc/passwd", 99)


async def test_accounts(root: Path) -> None:
    assert await read_accounts(root) == (b"", b"")
    (root / "etc" / "passwd").write_bytes(b"p")
    (root / "etc" / "group").write_bytes(b"g")
    before = os.listdir("/proc/self/fd")
    assert await read_accounts(root) == (b"p", b"g")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("hole", ["CVE-2026-41579", "CVE-2026-47766", "CVE-2023-27561"])
@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_a_mount_point_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, hole: str) -> None:
    check_mount_points(tmp_path)
    (tmp_path / "dev").mkdir()
    check_mount_points(tmp_path)
    (tmp_path / "dev").rmdir()
    (tmp_path / name).symlink_to("/tmp" if hole.startswith("CVE-2026") else "nowhere")
    with pytest.raises(InvalidRequest, match=f"^the image's /{name} must be a directory"):
        check_mount_points(tmp_path)


def test_a_file_is_no_mount_point_either(tmp_path: Path) -> None:
    (tmp_path / "sys").write_text("")
    with pytest.raises(InvalidRequest, match="/sys must be a directory"):
        check_mount_points(tmp_path)


async def test_cve_2025_4437_an_endless_passwd_is_not_read_to_its_end(root: Path) -> None:
    """CRI-O read all of an image's passwd into memory, whatever its size."""
    with (root / "etc/passwd").open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(LimitExceeded, match="/etc/passwd"):
        await read_accounts(root)


@pytest.mark.parametrize("target", ["/dev/zero", "../../../../../../dev/zero", "/proc/kmsg"])
async def test_cve_2024_9676_a_passwd_that_links_to_what_never_ends_is_not_followed_out(root: Path, target: str) -> None:
    """A library of CRI-O followed an image's link and read until it had no memory left."""
    (root / "etc/passwd").symlink_to(target)
    assert (await read_accounts(root))[0] == b""


async def test_cve_2024_9676_a_passwd_that_is_a_pipe_keeps_nobody_waiting(root: Path) -> None:
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(InvalidRequest, match="/etc/passwd"):
        await read_accounts(root)


_RENAME = """
import os
print(flush=True)
while True:
    os.rename("one", "two")
    os.rename("two", "one")
"""


def test_a_root_can_be_read_while_something_is_renamed_on_the_host(root: Path) -> None:
    """The kernel can't judge a ".." meanwhile, and says so; it is to be asked again."""
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"x")
    (root.parent / "one").mkdir()
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _RENAME], cwd=root.parent, stdout=subprocess.PIPE) as renamer:
        try:
            assert renamer.stdout is not None
            renamer.stdout.readline()
            for _ in range(4000):
                assert read_file(root, "/a/../a/b/../b/../../a/b/file", 10) == b"x"
        finally:
            renamer.kill()
