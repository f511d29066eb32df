"""A seccomp profile from a file, made into an OCI ``linux.seccomp`` object for one container.

Two dialects are in use under the same name: OCI's own, and Docker's, which adds ``archMap``, errors by name and, per rule,
``includes`` and ``excludes`` by capability and architecture. A runtime would ignore the additions and apply every rule, so
they are resolved here. What is wrong is refused here too, with its place in the file: a runtime says it late and less
clearly, or passes over it. Source: OCI config-linux.md "Seccomp"; the documented format of Docker's profiles.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bridge.core import seccomp_syscalls as facts
from bridge.errors import InvalidRequest

_ARCHITECTURES = {
    "386": "SCMP_ARCH_X86",
    "amd64": "SCMP_ARCH_X86_64",
    "arm": "SCMP_ARCH_ARM",
    "arm64": "SCMP_ARCH_AARCH64",
    "loong64": "SCMP_ARCH_LOONGARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}
_ACTIONS = frozenset(
    f"SCMP_ACT_{name}" for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
_OPENING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_FLAGS = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9_]+")
_KINDS: Mapping[type, str] = {list: "a list", dict: "an object", str: "text"}
_NOTIFY = "SCMP_ACT_NOTIFY"
_MAX_ERRNO = 4095
_MAX_ARGUMENT = 5


def resolve(profile: Mapping[str, Any], architecture: str, capabilities: Collection[str], field: str) -> dict[str, Any]:
    """The profile for a container with these bounding capabilities on this Go architecture.

    Raises InvalidRequest, which says what is wrong where. A call that we don't know is refused in a rule that restricts,
    because a runtime passes over it and a misspelled restriction would be none; a rule that allows may name calls of newer
    kernels and other architectures.
    """
    resolved: dict[str, Any] = {"defaultAction": _action(profile.get("defaultAction"), "defaultAction", field)}
    if resolved["defaultAction"] == _NOTIFY:
        raise _wrong("defaultAction", f"can't be {_NOTIFY}: the runtime's own calls would wait for an answer", field)
    code = _error_number(profile, "defaultErrnoRet", "defaultErrno", "defaultErrnoRet", field)
    if code is not None:
        resolved["defaultErrnoRet"] = code
    architectures = _mapped(profile, architecture, field) or _words(profile, "architectures", _ARCHITECTURE.fullmatch, field)
    if architectures:
        resolved["architectures"] = architectures
    flags = _words(profile, "flags", _FLAGS.__contains__, field)
    if flags:
        resolved["flags"] = flags
    for key in ("listenerPath", "listenerMetadata"):
        if profile.get(key):
            resolved[key] = _of_type(profile[key], str, key, field)
    rules = _of_type(profile.get("syscalls") or [], list, "syscalls", field)
    held = frozenset(capabilities)
    resolved["syscalls"] = [
        _rule(rule, f"syscalls[{index}]", field) for index, rule in enumerate(rules) if _applies(rule, architecture, held, index, field)
    ]
    if "listenerPath" not in resolved and any(rule["action"] == _NOTIFY for rule in resolved["syscalls"]):
        raise _wrong("listenerPath", f"is missing: nobody would answer the rules with {_NOTIFY}", field)
    return resolved


def _wrong(place: str, why: str, field: str) -> InvalidRequest:
    return InvalidRequest(f"the profile's {place} {why}", field=field)


def _of_type(value: Any, kind: type, place: str, field: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(place, f"is not {_KINDS[kind]}", field)
    return value


def _action(value: Any, place: str, field: str) -> str:
    if not isinstance(value, str) or value not in _ACTIONS:
        raise _wrong(place, f"{value!r} is not one of {', '.join(sorted(_ACTIONS))}", field)
    return value


def _number(value: Any, limit: int, place: str, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise _wrong(place, f"{value!r} is not a number from 0 to {limit}", field)
    return value


def _error_number(source: Mapping[str, Any], key: str, named: str, place: str, field: str) -> int | None:
    """By number, or by name as Podman's dialect has it beside."""
    if source.get(key) is not None:
        return _number(source[key], _MAX_ERRNO, place, field)
    name = source.get(named)
    if not name:
        return None
    code = getattr(errno, name, None) if isinstance(name, str) and name.startswith("E") else None
    if not isinstance(code, int):
        raise _wrong(place, f"{name!r} is not the name of an error", field)
    return code


def _words(source: Mapping[str, Any], key: str, known: Any, field: str) -> list[str]:
    words = _of_type(source.get(key) or [], list, key, field)
    for index, word in enumerate(words):
        if not isinstance(word, str) or not known(word):
            raise _wrong(f"{key}[{index}]", f"{word!r} is unknown", field)
    return list(words)


def _applies(rule: Any, architecture: str, capabilities: frozenset[str], index: int, field: str) -> bool:
    """All of the included capabilities and one of the architectures are needed; any of the excluded ones is too much.

    A ``minKernel`` among the included is always met: Docker's are all older than what this server needs itself.
    """
    _of_type(rule, dict, f"syscalls[{index}]", field)
    conditions = {}
    for side in ("includes", "excludes"):
        given = _of_type(rule.get(side) or {}, dict, f"syscalls[{index}].{side}", field)
        for kind in ("caps", "arches"):
            listed = _of_type(given.get(kind) or [], list, f"syscalls[{index}].{side}.{kind}", field)
            conditions[side, kind] = {_of_type(one, str, f"syscalls[{index}].{side}.{kind}", field) for one in listed}
    if not capabilities >= conditions["includes", "caps"]:
        return False
    if conditions["includes", "arches"] and architecture not in conditions["includes", "arches"]:
        return False
    return not (capabilities & conditions["excludes", "caps"] or architecture in conditions["excludes", "arches"])


def _rule(rule: Mapping[str, Any], place: str, field: str) -> dict[str, Any]:
    action = _action(rule.get("action"), f"{place}.action", field)
    names = rule.get("names") or ([rule["name"]] if rule.get("name") else [])
    plain: dict[str, Any] = {"names": _names(names, action, f"{place}.names", field), "action": action}
    code = _error_number(rule, "errnoRet", "errno", f"{place}.errnoRet", field)
    if code is not None:
        plain["errnoRet"] = code
    conditions = _of_type(rule.get("args") or [], list, f"{place}.args", field)
    if conditions:
        plain["args"] = [_argument(one, f"{place}.args[{index}]", field) for index, one in enumerate(conditions)]
    return plain


def _names(names: Any, action: str, place: str, field: str) -> list[str]:
    if not _of_type(names, list, place, field):
        raise _wrong(place, "is empty", field)
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _wrong(place, f"holds {name!r}, which can't be a system call", field)
        if action not in _OPENING and name not in facts.KNOWN:
            raise _wrong(place, f"restricts {name!r}, which is no system call of Linux: the restriction would have no effect", field)
    return list(names)


def _argument(value: Any, place: str, field: str) -> dict[str, Any]:
    given = _of_type(value, dict, place, field)
    operator = given.get("op")
    if not isinstance(operator, str) or operator not in _OPERATORS:
        raise _wrong(f"{place}.op", f"{operator!r} is not one of {', '.join(sorted(_OPERATORS))}", field)
    plain = {
        "index": _number(given.get("index", 0), _MAX_ARGUMENT, f"{place}.index", field),
        "value": _number(given.get("value", 0), 2**64 - 1, f"{place}.value", field),
        "op": operator,
    }
    if given.get("valueTwo") is not None:
        plain["valueTwo"] = _number(given["valueTwo"], 2**64 - 1, f"{place}.valueTwo", field)
    return plain


def _mapped(profile: Mapping[str, Any], architecture: str, field: str) -> Sequence[str]:
    """What Docker's archMap says of this architecture: itself and its sub-architectures."""
    native = _ARCHITECTURES.get(architecture)
    for index, entry in enumerate(_of_type(profile.get("archMap") or [], list, "archMap", field)):
        if native and _of_type(entry, dict, f"archMap[{index}]", field).get("architecture") == native:
            return [native, *_words(entry, "subArchitectures", _ARCHITECTURE.fullmatch, field)]
    return []
