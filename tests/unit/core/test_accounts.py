"""Entries for users and groups that an image doesn't know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.accounts import Identity, home_of, identify, with_line
from bridge.core.model import ContainerConfig, ContainerSecurity, MountRequest
from bridge.core.users import knows_gid, knows_uid, resolve
from tests.unit.core.spec_cases import config, image

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh"  # the last line isn't ended
GROUP = "root:x:0:\napp:x:1001:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    for name, text in (("passwd", PASSWD), ("group", GROUP)):
        path = tmp_path / "root/etc" / name
        path.write_text(text)
        path.chmod(0o644)
    return tmp_path / "root"


async def _identify(root: Path, wanted: ContainerConfig, **of_image: Any) -> Identity:
    return await identify(wanted, image(**of_image).config, root, root.parent / "bundle")


def _as(uid: int, gid: int | None = None, **changes: Any) -> ContainerConfig:
    security = ContainerSecurity(run_as_user=uid, run_as_group=gid, readonly_rootfs=changes.pop("readonly", False))
    return config(security=security, **changes)


def _files(identity: Identity) -> dict[str, str]:
    return {mount["destination"]: Path(mount["source"]).read_text() for mount in identity.mounts}


async def test_an_unknown_user_gets_an_entry(root: Path) -> None:
    who = await _identify(root, _as(4321, 77, working_dir="/srv"))
    assert _files(who) == {
        "/etc/passwd": PASSWD + "\n4321:x:4321:77:4321 user:/srv:/sbin/nologin\n",
        "/etc/group": GROUP + "77:x:77:\n",
    }
    assert who.home == "/srv"
    assert all(mount["options"] == ["bind", "rprivate", "nosuid", "nodev", "noexec", "rw"] for mount in who.mounts)
    assert all(Path(mount["source"]).stat().st_mode & 0o777 == 0o644 for mount in who.mounts)
    assert (root / "etc/passwd").read_text() == PASSWD
    again, home = resolve(ContainerSecurity(run_as_user=4321), "", _files(who)["/etc/passwd"].encode(), b"")
    assert (again.uid, again.gid, home) == (4321, 77, "/srv")


async def test_known_users_and_groups_get_none(root: Path) -> None:
    assert (await _identify(root, _as(1000))).mounts == ()
    assert (await _identify(root, config())).mounts == ()
    only_user = await _identify(root, _as(5))
    assert list(_files(only_user)) == ["/etc/passwd"]  # group 0 is there


async def test_only_the_group_is_unknown(root: Path) -> None:
    who = await _identify(root, _as(1000, 5000))
    assert list(_files(who)) == ["/etc/group"]
    assert who.home == "/home/app"


async def test_a_read_only_root_has_read_only_files(root: Path) -> None:
    who = await _identify(root, _as(4321, readonly=True))
    assert [mount["options"][-1] for mount in who.mounts] == ["ro"]


@pytest.mark.parametrize(
    ("of_image", "of_request", "home"),
    [
        ((), (), "/work"),
        (("HOME=/data",), (), "/data"),
        (("HOME=/data",), (("HOME", "/mine"),), "/mine"),
        ((), (("HOME", ""),), "/work"),
        ((), (("HOME", "relative"),), "/work"),
        ((), (("HOME", "/x:y"),), "/work"),
        ((), (("HOME", "/x\nroot2:x:0:0::/:/bin/sh"),), "/work"),
        ((), (("HOME", "/x\ry"),), "/work"),
    ],
)
async def test_home_and_no_line_of_ones_own_cve_2022_4318(
    root: Path, of_image: tuple[str, ...], of_request: tuple[tuple[str, str], ...], home: str
) -> None:
    who = await _identify(root, _as(4321, working_dir="/work", envs=of_request), env=of_image)
    lines = _files(who)["/etc/passwd"].splitlines()
    assert lines[-1] == f"4321:x:4321:0:4321 user:{home}:/sbin/nologin"
    assert len(lines) == 3
    assert who.home == home


async def test_a_working_directory_that_would_break_the_line_cve_2022_4318(root: Path) -> None:
    who = await _identify(root, _as(4321, working_dir="/a\nroot2:x:0:0::/:/bin/sh"))
    assert _files(who)["/etc/passwd"].splitlines()[-1].endswith(":/:/sbin/nologin")
    assert who.home == "/"


async def test_image_user_with_a_group_in_digits(root: Path) -> None:
    who = await _identify(root, config(), user="4321:4322")
    assert _files(who)["/etc/passwd"].splitlines()[-1] == "4321:x:4321:4322:4321 user:/:/sbin/nologin"
    assert _files(who)["/etc/group"].splitlines()[-1] == "4322:x:4322:"


@pytest.mark.parametrize("change", ["absent", "empty", "link", "link above", "group may write", "others may write", "own"])
async def test_the_images_file_is_left_alone(root: Path, change: str) -> None:
    path = root / "etc/passwd"
    match change:
        case "absent":
            path.unlink()
        case "empty":
            path.write_text("")
        case "link":
            path.rename(root / "real")
            path.symlink_to("/real")
        case "link above":
            (root / "etc").rename(root / "real")
            (root / "etc").symlink_to("real")
        case "group may write":
            path.chmod(0o664)
        case "others may write":
            path.chmod(0o646)
        case "own":
            os.chown(path, 4321, 0)
    who = await _identify(root, _as(4321))
    assert who.mounts == ()
    assert who.home == "/"


@pytest.mark.parametrize(
    ("place", "left"),
    [("/etc", []), ("/etc/", []), ("etc", []), ("/x/../etc/./", []), ("/etc/passwd", ["/etc/group"]), ("/etc/group", ["/etc/passwd"])],
)
async def test_a_volume_there_wins(root: Path, place: str, left: list[str]) -> None:
    who = await _identify(root, _as(4321, 77, mounts=(MountRequest(place, "/x"),)))
    assert list(_files(who)) == left


async def test_owner_and_mode_are_the_images(root: Path) -> None:
    os.chown(root / "etc/passwd", 17, 18)
    (root / "etc/passwd").chmod(0o640)
    who = await _identify(root, _as(4321))
    found = Path(who.mounts[0]["source"]).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (17, 18, 0o640)


@given(passwd=st.binary(min_size=1, max_size=200), home=st.text(max_size=40), directory=st.text(max_size=40))
@settings(deadline=None, max_examples=60)
def test_whatever_is_asked_one_line_is_added_and_it_is_ours_cve_2022_4318(passwd: bytes, home: str, directory: str) -> None:
    wanted = _as(4321, working_dir="/" + directory.replace("\0", ""), envs=(("HOME", home),))
    entry = f"4321:x:4321:0:4321 user:{home_of(wanted, image().config)}:/sbin/nologin"
    content = with_line(passwd, entry)
    assert content.startswith(passwd)
    added = content.removeprefix(passwd).lstrip(b"\n")
    assert added.count(b"\n") == 1
    assert added.endswith(b"\n")
    assert added.split(b":")[:4] == [b"4321", b"x", b"4321", b"0"]
    assert added.count(b":") == 6
    user, found = resolve(ContainerSecurity(run_as_user=4321), "", added, b"")
    assert user.uid == 4321
    assert found.startswith("/")


def test_lines_are_added_to_whatever_is_there() -> None:
    assert with_line(b"\xff\xfe", "a") == b"\xff\xfe\na\n"
    assert with_line(b"x\n", "a") == b"x\na\n"


def test_what_is_known() -> None:
    assert knows_uid(1000, PASSWD.encode())
    assert not knows_uid(1001, PASSWD.encode())
    assert knows_gid(1001, GROUP.encode())
    assert not knows_gid(1000, GROUP.encode())
