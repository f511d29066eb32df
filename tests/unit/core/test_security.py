"""Capabilities and hidden paths."""

from __future__ import annotations

import pytest

from bridge.core.model import Capabilities, ContainerSecurity
from bridge.core.security import DEFAULT_CAPABILITIES, MASKED_PATHS, READONLY_PATHS, capabilities, hidden_paths
from bridge.errors import Denied, InvalidRequest
from bridge.host.facts import CAPABILITIES
from tests.unit.core.spec_cases import FACTS, facts

DEFAULT = sorted(DEFAULT_CAPABILITIES)
ALL = sorted(CAPABILITIES)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        (None, DEFAULT),
        (Capabilities(), DEFAULT),
        (Capabilities(add=("NET_ADMIN",)), sorted([*DEFAULT, "CAP_NET_ADMIN"])),
        (Capabilities(add=("cap_net_admin",)), sorted([*DEFAULT, "CAP_NET_ADMIN"])),
        (Capabilities(drop=("CHOWN", "CAP_KILL")), [c for c in DEFAULT if c not in ("CAP_CHOWN", "CAP_KILL")]),
        (Capabilities(drop=("ALL",)), []),
        (Capabilities(add=("NET_BIND_SERVICE",), drop=("ALL",)), ["CAP_NET_BIND_SERVICE"]),
        (Capabilities(add=("ALL",)), ALL),
        (Capabilities(add=("ALL",), drop=("SYS_ADMIN",)), [c for c in ALL if c != "CAP_SYS_ADMIN"]),
        (Capabilities(add=("ALL",), drop=("ALL",)), []),
        (Capabilities(add=("NET_RAW",), drop=("NET_RAW",)), DEFAULT),
    ],
)
def test_capability_sets(wanted: Capabilities | None, held: list[str]) -> None:
    sets = capabilities(ContainerSecurity(capabilities=wanted), FACTS)
    assert sets["bounding"] == sets["permitted"] == sets["effective"] == held
    assert sets["inheritable"] == sets["ambient"] == []  # CVE-2022-24769


def test_ambient_is_in_all_sets() -> None:
    sets = capabilities(ContainerSecurity(capabilities=Capabilities(add_ambient=("NET_RAW",))), FACTS)
    assert sets["ambient"] == sets["inheritable"] == ["CAP_NET_RAW"]
    assert "CAP_NET_RAW" in sets["bounding"]
    assert sets["bounding"] == sets["permitted"]


def test_all_and_privileged_are_clipped_to_what_the_server_holds() -> None:
    poor = facts(capabilities=frozenset({"CAP_CHOWN", "CAP_NET_ADMIN"}))
    assert capabilities(ContainerSecurity(privileged=True), poor)["bounding"] == ["CAP_CHOWN", "CAP_NET_ADMIN"]
    assert capabilities(ContainerSecurity(capabilities=Capabilities(add=("ALL",))), poor)["bounding"] == ["CAP_CHOWN", "CAP_NET_ADMIN"]
    assert capabilities(ContainerSecurity(), poor)["bounding"] == ["CAP_CHOWN"]


def test_one_the_server_lacks_is_denied_by_name() -> None:
    with pytest.raises(Denied, match="CAP_SYS_RESOURCE"):
        capabilities(
            ContainerSecurity(capabilities=Capabilities(add=("SYS_RESOURCE",))),
            facts(capabilities=FACTS.capabilities - {"CAP_SYS_RESOURCE"}),
        )


@pytest.mark.parametrize("field", ["add", "drop", "add_ambient"])
def test_unknown_names_are_refused(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        capabilities(ContainerSecurity(capabilities=Capabilities(**{field: ("KILL", "SYS_ADMN")})), FACTS)
    full = "drop_capabilities" if field == "drop" else f"{field}_capabilities"
    assert caught.value.field == f"config.linux.security_context.capabilities.{full}[1]"


def test_hidden_paths() -> None:
    assert hidden_paths(ContainerSecurity()) == (list(MASKED_PATHS), list(READONLY_PATHS))
    assert hidden_paths(ContainerSecurity(masked_paths=("/proc/kcore",))) == (["/proc/kcore"], list(READONLY_PATHS))
    assert hidden_paths(ContainerSecurity(privileged=True, masked_paths=("/proc/kcore",))) == ([], [])
    with pytest.raises(InvalidRequest, match=r"readonly_paths\[0\]"):
        hidden_paths(ContainerSecurity(readonly_paths=("proc/bus",)))


def test_privileged_has_all_that_the_server_holds_whatever_is_added_or_dropped() -> None:
    changed = Capabilities(add=("SYS_RESOURCE",), drop=("ALL", "CHOWN"))
    poor = facts(capabilities=frozenset({"CAP_CHOWN", "CAP_NET_ADMIN"}))
    sets = capabilities(ContainerSecurity(privileged=True, capabilities=changed), poor)
    assert sets["bounding"] == sets["effective"] == ["CAP_CHOWN", "CAP_NET_ADMIN"]
    assert sets["inheritable"] == sets["ambient"] == []


@pytest.mark.parametrize("name", ["", "CAP_", "ALL ", "CAP_ALLL", "CHOWN,KILL", "cap_chown\n"])
def test_names_that_only_look_like_one(name: str) -> None:
    with pytest.raises(InvalidRequest):
        capabilities(ContainerSecurity(capabilities=Capabilities(add=(name,))), FACTS)


def test_ambient_all_and_dropped() -> None:
    every = capabilities(ContainerSecurity(capabilities=Capabilities(add_ambient=("ALL",), drop=("CAP_SYS_ADMIN",))), FACTS)
    assert every["ambient"] == every["bounding"] == [name for name in ALL if name != "CAP_SYS_ADMIN"]
    none = capabilities(ContainerSecurity(capabilities=Capabilities(add_ambient=("KILL",), drop=("KILL",))), FACTS)
    assert none["ambient"] == none["inheritable"] == []
    assert "CAP_KILL" not in none["bounding"]


def test_procmount_unmasked_counts_in_a_user_namespace_only() -> None:
    assert hidden_paths(ContainerSecurity()) == (list(MASKED_PATHS), list(READONLY_PATHS))
    assert hidden_paths(ContainerSecurity(), user_namespace=True) == ([], [])
    assert hidden_paths(ContainerSecurity(masked_paths=("/proc/kcore",)), user_namespace=True) == (["/proc/kcore"], [])
