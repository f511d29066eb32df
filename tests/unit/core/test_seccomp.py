"""The default seccomp profile, read back by a small evaluator: what does a call with these arguments get?"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import pytest

from bridge.core import seccomp_syscalls
from bridge.core.seccomp import default_profile
from bridge.core.security import DEFAULT_CAPABILITIES

ALLOW = "allow"


def _matches(condition: Mapping[str, Any], args: tuple[int, ...]) -> bool:
    value, wanted = args[condition["index"]] if condition["index"] < len(args) else 0, condition["value"]
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return bool(value == wanted)
        case "SCMP_CMP_LT":
            return bool(value < wanted)
        case "SCMP_CMP_GT":
            return bool(value > wanted)
        case "SCMP_CMP_MASKED_EQ":
            return bool(value & wanted == condition["valueTwo"])
    raise AssertionError(condition)


def answer(profile: Mapping[str, Any], name: str, *args: int) -> str | int:
    """ALLOW or the errno; two rules that disagree are an error of the profile."""
    found = {
        ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
        for rule in profile["syscalls"]
        if name in rule["names"] and all(_matches(condition, args) for condition in rule.get("args", ()))
    }
    assert len(found) <= 1, (name, args, found)
    return next(iter(found), profile["defaultErrnoRet"])


DEFAULT = default_profile("amd64", DEFAULT_CAPABILITIES)


@pytest.mark.parametrize("name", ["openat", "clone", "execve", "futex", "epoll_wait", "rseq", "arch_prctl", "chroot", "socketpair"])
def test_everyday_calls_are_allowed(name: str) -> None:
    assert answer(DEFAULT, name) == ALLOW


@pytest.mark.parametrize(
    "name",
    [
        *("futex_waitv", "process_mrelease", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "statmount", "listmount"),
        *("lsm_get_self_attr", "lsm_list_modules", "mseal", "uretprobe", "setxattrat", "file_getattr", "uprobe"),
    ],
)
def test_unprivileged_calls_of_linux_5_16_to_6_18_are_allowed(name: str) -> None:
    assert answer(DEFAULT, name) == ALLOW


@pytest.mark.parametrize(
    "name", ["mount", "umount2", "unshare", "setns", "bpf", "init_module", "reboot", "settimeofday", "pidfd_getfd", "open_by_handle_at"]
)
def test_privileged_calls_answer_eperm(name: str) -> None:
    assert answer(DEFAULT, name) == errno.EPERM


@pytest.mark.parametrize("name", ["clone3", "io_uring_setup", "keyctl", "set_mempolicy", "fsopen", "a_call_of_the_future"])
def test_calls_with_a_fallback_answer_enosys(name: str) -> None:
    assert answer(DEFAULT, name) == errno.ENOSYS


def test_clone_makes_no_namespaces_without_sys_admin() -> None:
    assert answer(DEFAULT, "clone", 0x00000100 | 17) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(DEFAULT, "clone", flag | 17) == errno.ENOSYS
    s390 = default_profile("s390x", ())
    assert answer(s390, "clone", 0x10000000, 17) == ALLOW  # there the flags are the second argument
    assert answer(s390, "clone", 0, 0x10000000) == errno.ENOSYS


def test_socket_families() -> None:
    refused = [family for family in range(64) if answer(DEFAULT, "socket", family) != ALLOW]
    assert refused == [38, 40]  # AF_ALG (CVE-2026-31431) and AF_VSOCK


def test_personality_keeps_address_randomisation() -> None:
    assert answer(DEFAULT, "personality", 0xFFFFFFFF) == ALLOW
    assert answer(DEFAULT, "personality", 0x0040000) != ALLOW  # ADDR_NO_RANDOMIZE


@pytest.mark.parametrize(("capability", "names"), sorted(seccomp_syscalls.BY_CAPABILITY.items()))
def test_a_capability_opens_its_calls_and_no_others(capability: str, names: tuple[str, ...]) -> None:
    without, with_it = default_profile("amd64", ()), default_profile("amd64", (capability,))
    everything = {name for rule in (*without["syscalls"], *with_it["syscalls"]) for name in rule["names"]}
    for name in everything - {"clone", "socket", "personality"}:
        if name in names:
            assert answer(with_it, name) == ALLOW
            assert answer(without, name) != ALLOW
        else:
            assert answer(with_it, name) == answer(without, name)


def test_each_action_and_condition_is_one_rule() -> None:
    """libseccomp's compile time is paid at each start: no name twice in a condition, no condition in two rules."""
    keys = [(rule["action"], rule.get("errnoRet"), str(rule.get("args"))) for rule in DEFAULT["syscalls"] if not rule.get("args")]
    assert len(keys) == len(set(keys)) == 2
    for rule in DEFAULT["syscalls"]:
        assert len(rule["names"]) == len(set(rule["names"]))


def test_architectures() -> None:
    assert DEFAULT["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert default_profile("amd64", (), native_only=True)["architectures"] == ["SCMP_ARCH_X86_64"]
    assert default_profile("arm64", ())["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert default_profile("s390x", ())["architectures"] == ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]
    assert default_profile("ppc64le", ())["architectures"] == ["SCMP_ARCH_PPC64LE"]
    assert default_profile("riscv64", ())["architectures"] == ["SCMP_ARCH_RISCV64"]
    for architecture, own in (("ppc64le", "swapcontext"), ("riscv64", "riscv_hwprobe"), ("arm64", "set_tls"), ("386", "modify_ldt")):
        assert answer(default_profile(architecture, ()), own) == ALLOW
    assert "architectures" not in default_profile("unheard-of", ())
    assert answer(default_profile("arm64", ()), "arch_prctl") == errno.ENOSYS
    assert answer(default_profile("s390x", ()), "s390_pci_mmio_read") == ALLOW


def test_the_caller_owns_what_it_gets() -> None:
    mine = default_profile("amd64", DEFAULT_CAPABILITIES)
    mine["syscalls"][0]["names"].append("mount")
    mine["syscalls"].clear()
    assert answer(default_profile("amd64", DEFAULT_CAPABILITIES), "mount") == errno.EPERM
