"""Who a container runs as: the tables of CRI and OCI rules, and the ways an image can try to trick them."""

from __future__ import annotations

import pytest

from bridge.core.entities import User
from bridge.core.model import ContainerSecurity, GroupsPolicy
from bridge.core.users import MAX_ID, resolve
from bridge.errors import InvalidRequest

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment: not:an:account:at:all:x
app:x:1000:1001:App:/home/app:/bin/sh
1234:x:77:78:named like a number:/srv:/bin/sh
homeless:x:2000:2000:::/bin/sh
short:x:3
twin:x:1000:9999::/elsewhere:/bin/sh
"""
GROUP = b"""root:x:0:
app:x:1001:
audio:x:29:app,other
video:x:44:app
broken:x:notanumber:app
staff:x:50
"""


@pytest.mark.parametrize(
    ("image_user", "uid", "gid", "home"),
    [
        ("", 0, 0, "/root"),
        ("0", 0, 0, "/root"),
        ("app", 1000, 1001, "/home/app"),
        ("1000", 1000, 1001, "/home/app"),
        ("1000:0", 1000, 0, "/home/app"),
        ("app:video", 1000, 44, "/home/app"),
        ("app:staff", 1000, 50, "/home/app"),
        ("555", 555, 0, "/"),
        ("555:666", 555, 666, "/"),
        ("1234", 1234, 0, "/"),
        ("homeless", 2000, 2000, "/"),
        (":44", 0, 44, "/root"),
    ],
)
def test_image_user(image_user: str, uid: int, gid: int, home: str) -> None:
    user, found_home = resolve(ContainerSecurity(supplemental_groups_policy=GroupsPolicy.STRICT), image_user, PASSWD, GROUP)
    assert (user.uid, user.gid, found_home) == (uid, gid, home)


def test_request_wins_over_image() -> None:
    user, home = resolve(ContainerSecurity(run_as_user=1000), "root", PASSWD, GROUP)
    assert (user.uid, user.gid, home) == (1000, 1001, "/home/app")
    user, _ = resolve(ContainerSecurity(run_as_username="app", run_as_group=5), "root:root", PASSWD, GROUP)
    assert (user.uid, user.gid) == (1000, 5)


def test_request_for_root_is_not_taken_for_no_request() -> None:
    user, _ = resolve(ContainerSecurity(run_as_user=0, run_as_group=0), "app:video", PASSWD, GROUP)
    assert user == User(0, 0, (0,))


def test_groups_merge_and_strict() -> None:
    merged, _ = resolve(ContainerSecurity(run_as_user=1000, supplemental_groups=(7, 44)), "", PASSWD, GROUP)
    assert merged.additional_gids == (1001, 29, 44, 7)
    strict, _ = resolve(
        ContainerSecurity(run_as_user=1000, supplemental_groups=(7,), supplemental_groups_policy=GroupsPolicy.STRICT), "", PASSWD, GROUP
    )
    assert strict.additional_gids == (1001, 7)


def test_primary_group_is_an_additional_one_cve_2023_25173() -> None:
    user, _ = resolve(ContainerSecurity(run_as_user=1000, run_as_group=44), "", PASSWD, GROUP)
    assert user.gid == 44
    assert 44 in user.additional_gids


def test_no_files_at_all() -> None:
    assert resolve(ContainerSecurity(run_as_user=12), "", b"", b"") == (User(12, 0, (0,)), "/")


@pytest.mark.parametrize("value", [-1, MAX_ID + 1, 2**32, 2**32 - 1, 2**63])
def test_ids_out_of_range_cve_2024_40635(value: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(ContainerSecurity(run_as_user=value), "", PASSWD, GROUP)
    assert caught.value.field == "config.linux.security_context.run_as_user"
    with pytest.raises(InvalidRequest) as caught:
        resolve(ContainerSecurity(run_as_user=1, run_as_group=value), "", PASSWD, GROUP)
    assert caught.value.field == "config.linux.security_context.run_as_group"
    with pytest.raises(InvalidRequest) as caught:
        resolve(ContainerSecurity(supplemental_groups=(1, value)), "", PASSWD, GROUP)
    assert caught.value.field == "config.linux.security_context.supplemental_groups[1]"
    with pytest.raises(InvalidRequest):
        resolve(ContainerSecurity(), str(value), PASSWD, GROUP)
    with pytest.raises(InvalidRequest):
        resolve(ContainerSecurity(), f"1:{value}", PASSWD, GROUP)


@pytest.mark.parametrize(
    ("request_", "image_user", "field"),
    [
        (ContainerSecurity(run_as_group=5), "", "config.linux.security_context.run_as_group"),
        (ContainerSecurity(run_as_username="nobody-here"), "", "config.linux.security_context.run_as_username"),
        (ContainerSecurity(), "nobody-here", "image user"),
        (ContainerSecurity(), "app:nogroup", "image user"),
        (ContainerSecurity(), "short", "image user"),
    ],
)
def test_refusals_name_the_field(request_: ContainerSecurity, image_user: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(request_, image_user, PASSWD, GROUP)
    assert caught.value.field == field


def test_a_row_of_digits_is_no_id_however_long_cve_2024_40635() -> None:
    with pytest.raises(InvalidRequest, match="is not between"):
        resolve(ContainerSecurity(), "9" * 5000, PASSWD, GROUP)
    with pytest.raises(InvalidRequest, match="is not between") as caught:
        resolve(ContainerSecurity(run_as_username="4294967296"), "", PASSWD, GROUP)
    assert caught.value.field == "config.linux.security_context.run_as_username"


@pytest.mark.parametrize("user", ["app:", "1000:"])
def test_an_empty_group_is_the_accounts_own(user: str) -> None:
    found, _ = resolve(ContainerSecurity(), user, PASSWD, GROUP)
    assert (found.uid, found.gid) == (1000, 1001)


@pytest.mark.parametrize("user", ["app:video:x", "1000:44:5", "app\n", "1app", "4x"])
def test_what_only_begins_like_a_user(user: str) -> None:
    with pytest.raises(InvalidRequest):
        resolve(ContainerSecurity(), user, PASSWD, GROUP)


def test_account_with_an_id_that_would_wrap_to_root_is_unusable() -> None:
    with pytest.raises(InvalidRequest):
        resolve(ContainerSecurity(run_as_username="evil"), "", b"evil:x:4294967296:0::/:/bin/sh\n", b"")


def test_bytes_that_are_no_text_do_no_harm() -> None:
    user, _ = resolve(ContainerSecurity(run_as_username="app"), "", b"\xff\xfe:x:1:1::/:\n" + PASSWD, b"\xff:x:9:app\n" + GROUP)
    assert user.additional_gids[:2] == (1001, 9)
