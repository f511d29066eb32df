"""Which seccomp profile a container gets, and the default one, as the ``linux.seccomp`` object of the OCI runtime spec.

The default is an allow-list of our own making from the facts in ``seccomp_syscalls``: the default answer is ENOSYS, known and refused
calls answer EPERM. One rule per action and argument condition, because libseccomp's compile time, which every container
start and (with runc) every exec pays, grows with the rules. Profiles are cached per architecture and capability set.
Sources: OCI runtime spec config-linux.md "Seccomp", seccomp(2).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from bridge.core import seccomp_profile
from bridge.core import seccomp_syscalls as facts
from bridge.core.model import ProfileType, SecurityProfile
from bridge.core.spec_inputs import SpecSettings
from bridge.errors import InvalidRequest, Unsupported
from bridge.host.facts import HostFacts

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"
_EQUAL, _LESS, _GREATER, _MASKED = "SCMP_CMP_EQ", "SCMP_CMP_LT", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26, PER_LINUX32|UNAME26, and the query: none of them weakens address randomisation."""

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: a new user namespace opens kernel code that only root could reach."""

_AF_ALG, _AF_VSOCK = 38, 40


_FIELD = "config.linux.security_context.seccomp"


def for_container(
    request: SecurityProfile | None,
    localhost: Mapping[str, Any] | None,
    bounding: Collection[str],
    host: HostFacts,
    settings: SpecSettings,
) -> Mapping[str, Any] | None:
    """The profile of a container that isn't privileged, None for none. ``localhost`` is the file that a request names, parsed.

    Raises Unsupported when a profile is asked for that this kernel can't apply, InvalidRequest for a faulty one.
    """
    wanted = request or SecurityProfile(settings.seccomp_when_unset)
    if wanted.profile_type is ProfileType.UNCONFINED or (request is None and not host.seccomp):
        return None
    if not host.seccomp:
        raise Unsupported(f"{_FIELD}: {wanted.profile_type} was asked for, but this kernel has no seccomp filters")
    if wanted.profile_type is ProfileType.RUNTIME_DEFAULT:
        return _runtime_default(bounding, host, settings)
    if localhost is None:
        raise InvalidRequest(f"profile {wanted.localhost_ref!r} was not found", field=f"{_FIELD}.localhost_ref")
    return seccomp_profile.resolve(localhost, host.architecture, bounding, f"{_FIELD}.localhost_ref")


def for_sandbox(
    request: SecurityProfile | None, localhost: Mapping[str, Any] | None, host: HostFacts, settings: SpecSettings
) -> Mapping[str, Any] | None:
    """The profile of a pause process in a pod that isn't privileged: the default one also when none is asked for.

    A kubelet asks for RuntimeDefault whatever its pods want, so that is not refused where the kernel has no seccomp.
    """
    if not host.seccomp and (request is None or request.profile_type is ProfileType.RUNTIME_DEFAULT):
        return None
    return for_container(request or SecurityProfile(ProfileType.RUNTIME_DEFAULT), localhost, (), host, settings)


def _runtime_default(bounding: Collection[str], host: HostFacts, settings: SpecSettings) -> Mapping[str, Any]:
    if settings.seccomp_profile is not None:
        return seccomp_profile.resolve(settings.seccomp_profile, host.architecture, bounding, "security.seccomp_profile")
    return default_profile(host.architecture, bounding, native_only=settings.seccomp_native_only)


def default_profile(architecture: str, capabilities: Iterable[str], *, native_only: bool = False) -> dict[str, Any]:
    """The profile for a container with this bounding set on this Go architecture; the caller owns it.

    ``native_only`` leaves out the 32-bit companion of a 64-bit architecture: its programs are killed.
    """
    opening = frozenset(capability for capability in capabilities if capability in facts.BY_CAPABILITY)
    profile = _profile(architecture, opening, native_only)
    rules = [{**rule, "names": list(rule["names"])} for rule in profile["syscalls"]]
    return {**profile, "syscalls": rules}


@lru_cache(maxsize=256)
def _profile(architecture: str, capabilities: frozenset[str], native_only: bool) -> Mapping[str, Any]:
    opened = {name for cap in sorted(capabilities) for name in facts.BY_CAPABILITY.get(cap, ())}
    allowed = {*facts.ALWAYS, *facts.BY_ARCHITECTURE.get(architecture, ()), *opened}
    rules = [_rule(sorted(allowed)), _rule(sorted(set(facts.REFUSED) - opened), errno_ret=errno.EPERM), *_sockets()]
    rules += [_rule(["personality"], [_argument(0, value, _EQUAL)]) for value in _PERSONALITIES]
    if "clone" not in opened:
        flags_index = 1 if architecture == "s390x" else 0
        rules.append(_rule(["clone"], [_argument(flags_index, _NEW_NAMESPACES, _MASKED, 0)]))
    profile: dict[str, Any] = {"defaultAction": _ERRNO, "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
    if architecture in facts.FILTER_ARCHITECTURES:
        profile["architectures"] = list(facts.FILTER_ARCHITECTURES[architecture][: 1 if native_only else None])
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


def _sockets() -> list[dict[str, Any]]:
    """socket(2) for every family but AF_ALG (CVE-2026-31431) and AF_VSOCK (reaches the host or its virtual machines).

    Two conditions on one argument can't stand in one rule, hence ranges. For i386 libseccomp opens socketcall(2) for socket
    with these rules, and a filter can't read its arguments: only a security module closes that way to AF_ALG.
    """
    ranges = [(_LESS, _AF_ALG), (_EQUAL, _AF_ALG + 1), (_GREATER, _AF_VSOCK)]
    return [_rule(["socket"], [_argument(0, family, op)]) for op, family in ranges]
