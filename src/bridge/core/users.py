"""Who a container runs as: CRI security context + image USER + the image's passwd and group files → uid, gid, groups, home.

Pure: the files come as bytes (host/rootfs reads them without leaving the rootfs). Sources: CRI v1
LinuxContainerSecurityContext (run_as_*, supplemental_groups*), OCI image spec config.md "User", passwd(5), group(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.core.entities import User
from bridge.core.model import ContainerSecurity, GroupsPolicy
from bridge.errors import InvalidRequest

MAX_ID = 2**31 - 1
"""Highest uid or gid taken: Kubernetes allows no more, and beyond it the kernel's own casts begin (CVE-2024-40635)."""

_LONGEST_ID = 11
_NO_HOME = "/"  # of an account without one, as with runc and crun
_CONTEXT = "config.linux.security_context"


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve(request: ContainerSecurity, image_user: str, passwd: bytes, group: bytes) -> tuple[User, str]:
    """The user of the container's first process and its home directory.

    ``image_user`` is the image config's User ("", "uid", "name", "uid:gid", "name:group"); it counts only when the request
    names no user. All digits is an id, anything else a name, as the kubelet reads it. Without a group the account's own
    is used, or 0 when the image doesn't know the uid. The primary group is the first of the additional ones, so that
    a process can't lose a group-based denial by it (CVE-2023-25173). Raises InvalidRequest naming the field.
    """
    accounts = list(_accounts(passwd))
    user_text, group_text, field = _asked(request, image_user)
    account = _account(user_text, accounts, field)
    gid = account.gid if group_text == "" else _group_id(group_text, group, field if request.run_as_group is None else "run_as_group")
    extra = [checked_id(value, f"{_CONTEXT}.supplemental_groups[{index}]") for index, value in enumerate(request.supplemental_groups)]
    members = list(_memberships(account.name, group)) if request.supplemental_groups_policy is GroupsPolicy.MERGE else []
    groups = tuple(dict.fromkeys([gid, *members, *extra]))
    return User(uid=account.uid, gid=gid, additional_gids=groups), account.home or _NO_HOME


def knows_uid(uid: int, passwd: bytes) -> bool:
    """Whether an account has this uid."""
    return any(account.uid == uid for account in _accounts(passwd))


def knows_gid(gid: int, group: bytes) -> bool:
    """Whether a group has this gid."""
    return any(known == gid for _, known, _ in _groups(group))


def _asked(request: ContainerSecurity, image_user: str) -> tuple[str, str, str]:
    """User and group as text, and the field to blame for them."""
    if request.run_as_group is not None and request.run_as_user is None and not request.run_as_username:
        raise InvalidRequest("needs run_as_user or run_as_username", field=f"{_CONTEXT}.run_as_group")
    group_text = "" if request.run_as_group is None else str(request.run_as_group)
    if request.run_as_user is not None:
        return str(request.run_as_user), group_text, "run_as_user"
    if request.run_as_username:
        return request.run_as_username, group_text, "run_as_username"
    user_text, _, image_group = image_user.partition(":")
    return user_text or "0", image_group, "image user"


def _blame(field: str) -> str:
    return field if field == "image user" else f"{_CONTEXT}.{field}"


def _account(text: str, accounts: list[_Account], field: str) -> _Account:
    if _is_number(text):
        uid = _number(text, _blame(field))
        known = next((account for account in accounts if account.uid == uid), None)
        return known or _Account("", uid, 0, "")
    found = next((account for account in accounts if account.name == text), None)
    if found is None:
        raise InvalidRequest(f"no user {text!r} in the image's /etc/passwd", field=_blame(field))
    return found


def _group_id(text: str, group: bytes, field: str) -> int:
    if _is_number(text):
        return _number(text, _blame(field))
    for name, gid, _ in _groups(group):
        if name == text:
            return gid
    raise InvalidRequest(f"no group {text!r} in the image's /etc/group", field=_blame(field))


def _is_number(text: str) -> bool:
    """ASCII digits with an optional sign: "-1" and "4294967296" are ids out of range, not names."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    return digits.isascii() and digits.isdigit()


def _number(text: str, field: str) -> int:
    """An id from text; a row of digits too long for any id isn't even turned into a number."""
    if len(text) > _LONGEST_ID:
        raise InvalidRequest(f"{text[:_LONGEST_ID]}… is not between 0 and {MAX_ID}", field=field)
    return checked_id(int(text), field)


def checked_id(value: int, field: str) -> int:
    """``value`` if it can be a uid or gid; InvalidRequest naming ``field`` otherwise."""
    if not 0 <= value <= MAX_ID:
        raise InvalidRequest(f"{value} is not between 0 and {MAX_ID}", field=field)
    return value


def _memberships(name: str, group: bytes) -> Iterator[int]:
    if name:
        yield from (gid for _, gid, members in _groups(group) if name in members)


def _rows(data: bytes, least: int) -> Iterator[list[str]]:
    """Colon-separated rows; comments and rows too short to mean anything are passed over, as the C library does."""
    for line in data.split(b"\n"):
        cells = line.decode("utf-8", "surrogateescape").strip().split(":")
        if len(cells) >= least and not cells[0].startswith("#"):
            yield cells


def _file_id(text: str) -> int | None:
    """An id of the image's files; one out of range makes its row unusable rather than wrap around."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def _accounts(passwd: bytes) -> Iterator[_Account]:
    for cells in _rows(passwd, 6):
        uid, gid = _file_id(cells[2]), _file_id(cells[3])
        if uid is not None and gid is not None:
            yield _Account(cells[0], uid, gid, cells[5] if cells[5].startswith("/") else "")


def _groups(group: bytes) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    for cells in _rows(group, 3):
        gid = _file_id(cells[2])
        if gid is not None:
            yield cells[0], gid, tuple(cells[3].split(",")) if len(cells) > 3 else ()
