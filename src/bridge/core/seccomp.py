"""The default seccomp profile, as the ``linux.seccomp`` object of the OCI runtime spec.

An allow-list of our own making from the facts in ``seccomp_syscalls``: the default answer is ENOSYS, known and refused
calls answer EPERM. One rule per action and argument condition, because libseccomp's compile time, which every container
start and (with runc) every exec pays, grows with the rules. Profiles are cached per architecture and capability set.
Sources: OCI runtime spec config-linux.md "Seccomp", seccomp(2).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from bridge.core import seccomp_syscalls as facts

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"
_EQUAL, _NOT_EQUAL, _LESS, _GREATER, _MASKED = "SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26, PER_LINUX32|UNAME26, and the query: none of them weakens address randomisation."""

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: a new user namespace opens kernel code that only root could reach."""

_AF_NETLINK, _AF_ALG, _AF_VSOCK = 16, 38, 40
_NETLINK_AUDIT = 9
_WORD = 0xFFFFFFFF


def default_profile(architecture: str, capabilities: Iterable[str]) -> Mapping[str, Any]:
    """The profile for a container with this bounding set on this Go architecture. Shared and cached: don't change it."""
    opening = frozenset(capabilities) & (facts.BY_CAPABILITY.keys() | {"CAP_AUDIT_WRITE"})
    return _profile(architecture, opening)


@lru_cache(maxsize=256)
def _profile(architecture: str, capabilities: frozenset[str]) -> Mapping[str, Any]:
    opened = {name for cap in sorted(capabilities) for name in facts.BY_CAPABILITY.get(cap, ())}
    gated = {name for names in facts.BY_CAPABILITY.values() for name in names}
    refused = (gated - opened - facts.FALLS_BACK - {"clone"}) | set(facts.REFUSED)
    allowed = {*facts.ALWAYS, *facts.BY_ARCHITECTURE.get(architecture, ()), *opened}
    rules = [_rule(sorted(allowed)), _rule(sorted(refused), errno_ret=errno.EPERM), *_sockets("CAP_AUDIT_WRITE" in capabilities)]
    rules += [_rule(["personality"], [_argument(0, value, _EQUAL)]) for value in _PERSONALITIES]
    if "clone" not in opened:
        flags_index = 1 if architecture == "s390x" else 0
        rules.append(_rule(["clone"], [_argument(flags_index, _NEW_NAMESPACES, _MASKED, 0)]))
    profile: dict[str, Any] = {"defaultAction": _ERRNO, "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
    if architecture in facts.FILTER_ARCHITECTURES:
        profile["architectures"] = list(facts.FILTER_ARCHITECTURES[architecture])
    return profile


def _rule(names: list[str], args: list[dict[str, Any]] | None = None, *, errno_ret: int | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": _ALLOW if errno_ret is None else _ERRNO}
    if errno_ret is not None:
        rule["errnoRet"] = errno_ret
    if args:
        rule["args"] = args
    return rule


def _argument(index: int, value: int, op: str, value_two: int | None = None) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": op}
    if value_two is not None:
        argument["valueTwo"] = value_two
    return argument


def _sockets(audit: bool) -> list[dict[str, Any]]:
    """socket(2) for every family but AF_ALG (CVE-2026-31431) and AF_VSOCK (reaches the host or its virtual machines).

    These two answer EAFNOSUPPORT, as from a kernel without them. Without CAP_AUDIT_WRITE also not the audit netlink: EINVAL,
    else PAM takes the refusal of its messages for a failed login. Conditions on one argument can't be joined in one rule,
    hence ranges by mask: each (start, length) is an aligned power of two. The i386 multiplexer socketcall is not allowed: it
    would go round all this.
    """
    ranges = [[_argument(0, _AF_ALG, _LESS)]]
    rules = [_rule(["socket"], [_argument(0, family, _EQUAL)], errno_ret=errno.EAFNOSUPPORT) for family in (_AF_ALG, _AF_VSOCK)]
    if not audit:
        ranges = [[_argument(0, _AF_NETLINK, _LESS)], [_argument(0, _AF_NETLINK, _EQUAL), _argument(2, _NETLINK_AUDIT, _NOT_EQUAL)]]
        ranges += [
            [_argument(0, _WORD & ~(size - 1), _MASKED, start)] for start, size in ((17, 1), (18, 2), (20, 4), (24, 8), (32, 4), (36, 2))
        ]
        audit_socket = [_argument(0, _AF_NETLINK, _EQUAL), _argument(2, _NETLINK_AUDIT, _EQUAL)]
        rules.append(_rule(["socket"], audit_socket, errno_ret=errno.EINVAL))
    ranges += [[_argument(0, _AF_ALG + 1, _EQUAL)], [_argument(0, _AF_VSOCK, _GREATER)]]
    return [*rules, *(_rule(["socket"], args) for args in ranges)]
