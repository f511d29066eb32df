"""Profiles from files: OCI's dialect passes as it is, Docker's additions are resolved."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.core.seccomp_profile import resolve
from bridge.errors import InvalidRequest

DOCKER: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}, "excludes": {}},
        {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0}], "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["set_tls"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
        {"names": ["odd"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
    ],
}


def _names(profile: dict[str, Any]) -> list[str]:
    return [name for rule in profile["syscalls"] for name in rule["names"]]


def test_docker_dialect() -> None:
    plain = resolve(DOCKER, "amd64", [], "f")
    assert _names(plain) == ["read", "clone"]
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert plain["defaultErrnoRet"] == 1
    assert "archMap" not in plain
    assert plain["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    assert plain["syscalls"][1]["args"] == [{"index": 0}]
    assert _names(resolve(DOCKER, "amd64", ["CAP_SYS_ADMIN"], "f")) == ["read", "mount"]
    assert _names(resolve(DOCKER, "arm64", [], "f")) == ["read", "clone", "set_tls", "odd"]
    assert DOCKER["syscalls"][0]["comment"] == "x"


def test_oci_dialect_stays_as_it_is() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86"],
        "listenerPath": "/run/x",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}],
    }
    assert resolve(profile, "amd64", [], "f") == profile
    assert resolve({"defaultAction": "SCMP_ACT_ALLOW"}, "amd64", [], "f") == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}


@pytest.mark.parametrize(
    "profile",
    [{}, {"defaultAction": 1}, {"defaultAction": "A", "syscalls": {"names": 1}}, {"defaultAction": "A", "syscalls": [{"names": []}]}],
)
def test_what_is_no_profile_is_refused(profile: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(profile, "amd64", [], "the.field")
    assert caught.value.field == "the.field"
