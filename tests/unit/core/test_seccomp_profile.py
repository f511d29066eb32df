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
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "op": "SCMP_CMP_EQ"}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
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
    assert plain["syscalls"][1]["args"] == [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]
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


def _with(rule: object = None, **changes: object) -> dict[str, Any]:
    rules = [] if rule is None else [rule]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}, *rules], **changes}


def _rule(**changes: object) -> dict[str, Any]:
    return {"names": ["mount"], "action": "SCMP_ACT_ERRNO", **changes}


@pytest.mark.parametrize(
    ("profile", "place"),
    [
        (_with(defaultAction="SCMP_ACT_DENY"), "defaultAction"),
        (_with(defaultErrnoRet=-1), "defaultErrnoRet"),
        (_with(defaultErrnoRet="38"), "defaultErrnoRet"),
        (_with(defaultErrno="ENOWHERE"), "defaultErrnoRet"),
        (_with(architectures=["x86_64"]), r"architectures\[0\]"),
        (_with(architectures="SCMP_ARCH_X86"), "architectures"),
        (_with(flags=["SECCOMP_FILTER_FLAG_TSYNC", "LOG"]), r"flags\[1\]"),
        (_with(listenerPath=["/x"]), "listenerPath"),
        (_with(archMap=["amd64"]), r"archMap\[0\]"),
        (_with(defaultAction="SCMP_ACT_NOTIFY"), "defaultAction"),
        (_with(_rule(action="SCMP_ACT_NOTIFY")), "listenerPath"),
        (_with("mount"), r"syscalls\[1\]"),
        (_with(_rule(action="SCMP_ACT_ERNO")), r"syscalls\[1\].action"),
        (_with(_rule(names=["mount", 5])), r"syscalls\[1\].names"),
        (_with(_rule(names="mount")), r"syscalls\[1\].names"),
        (_with(_rule(names=["sethostnam"])), "sethostnam"),
        (_with(_rule(names=["Mount"], action="SCMP_ACT_ALLOW")), "Mount"),
        (_with(_rule(errnoRet=5000)), r"syscalls\[1\].errnoRet"),
        (_with(_rule(args={})), ""),
        (_with(_rule(args=[1])), r"syscalls\[1\].args\[0\]"),
        (_with(_rule(args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}])), r"args\[0\].index"),
        (_with(_rule(args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])), r"args\[0\].value"),
        (_with(_rule(args=[{"index": 0, "value": 2**64, "op": "SCMP_CMP_EQ"}])), r"args\[0\].value"),
        (_with(_rule(args=[{"index": 0, "value": True, "op": "SCMP_CMP_EQ"}])), r"args\[0\].value"),
        (_with(_rule(args=[{"index": 0, "value": 1, "op": "=="}])), r"args\[0\].op"),
        (_with(_rule(includes=["CAP_KILL"])), r"syscalls\[1\].includes"),
        (_with(_rule(excludes={"caps": "CAP_KILL"})), r"syscalls\[1\].excludes.caps"),
        (_with(_rule(includes={"arches": [["amd64"]]})), r"syscalls\[1\].includes.arches"),
    ],
)
def test_a_fault_is_refused_with_its_place(profile: dict[str, Any], place: str) -> None:
    if not place:  # an empty object for an empty list does no harm
        assert "args" not in resolve(profile, "amd64", [], "f")["syscalls"][1]
        return
    with pytest.raises(InvalidRequest, match=place) as caught:
        resolve(profile, "amd64", [], "the.field")
    assert caught.value.field == "the.field"


def test_an_allowed_call_may_be_one_of_a_newer_kernel() -> None:
    profile = _with(_rule(names=["call_of_the_future"], action="SCMP_ACT_ALLOW"))
    assert _names(resolve(profile, "amd64", [], "f")) == ["chmod", "call_of_the_future"]


def test_errors_by_name() -> None:
    profile = _with(_rule(errno="EPERM"), defaultErrno="ENOSYS")
    plain = resolve(profile, "amd64", [], "f")
    assert plain["defaultErrnoRet"] == 38
    assert plain["syscalls"][1]["errnoRet"] == 1
    assert "errno" not in plain["syscalls"][1]
