"""hooks.d: which file counts, which container gets its hook, and why a file is not used. Source: oci-hooks(5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.core import hooks
from bridge.core.hooks import staged
from bridge.errors import ConfigError
from bridge.host.watched_files import FoundFile


def file(path: str, when: dict[str, Any] | None = None, stages: tuple[str, ...] = ("poststop",), rank: int = 0, **hook: Any) -> FoundFile:
    whole = {"version": "1.0.0", "hook": {"path": "/bin/h", **hook}, "when": {"always": True} if when is None else when, "stages": stages}
    return FoundFile(Path(path), rank, json.dumps(whole).encode())


def matches(
    when: dict[str, Any], *, command: str = "/usr/bin/app", annotations: dict[str, str] | None = None, mounts: bool = False
) -> bool:
    known = hooks.parse_all([file("/h/a.json", when)])
    assert not known.faults
    return bool(known.matching(command, annotations or {}, mounts))


def test_hooks_go_by_file_name_in_lower_case_and_a_later_directory_replaces() -> None:
    files = [file(f"/usr/{name}.json", mark=name, args=[name]) for name in ("B", "a", "C")]
    files += [file("/etc/C.json", rank=1, args=["C of etc"]), file("/etc/b2.json", rank=1, args=["b2"])]
    known = hooks.parse_all(files)
    assert [hook.hook["args"] for hook in known.matching("x", {}, False)] == [["a"], ["B"], ["b2"], ["C of etc"]]


def test_a_replacement_that_cannot_be_used_replaces_all_the_same() -> None:
    known = hooks.parse_all([file("/usr/a.json"), FoundFile(Path("/etc/a.json"), 1, b"")])
    assert known.hooks == ()
    assert list(known.faults) == [Path("/etc/a.json")]
    masked = hooks.parse_all([FoundFile(Path("/usr/a.json"), 0, b"{"), file("/etc/a.json", rank=1)])
    assert (len(masked.hooks), masked.faults) == (1, {})
    unreadable = hooks.parse_all([FoundFile(Path("/etc/hooks.d"), 1, fault="Permission denied")])
    assert unreadable.faults == {Path("/etc/hooks.d"): "is not used: Permission denied"}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"always": True}, True),
        ({"always": False}, False),
        ({"commands": ["^/usr/bin/app$"]}, True),
        ({"commands": ["nope", "app"]}, True),
        ({"commands": ["^app"]}, False),
        ({"commands": ["^/usr/[[:alpha:]]+/app$"]}, True),
        ({"commands": ["[[:digit:][:upper:]]"]}, False),
        ({"annotations": {"^example\\.com/": "^y"}}, True),
        ({"annotations": {"^example\\.com/": "n"}}, False),
        ({"annotations": {"^example\\.com/a$": ".*", "^b$": "^1$"}}, True),
        ({"annotations": {"^example\\.com/a$": ".*", "^b$": "^2$"}}, False),
        ({"hasBindMounts": True}, True),
        ({"hasBindMounts": False}, False),
        ({"always": True, "commands": ["nope"]}, False),
        ({"always": True, "commands": ["app"], "hasBindMounts": True, "annotations": {"b": "1"}}, True),
        ({"always": False, "commands": ["app"]}, False),
    ],
)
def test_all_conditions_must_hold(when: dict[str, Any], expected: bool) -> None:
    assert matches(when, annotations={"example.com/a": "yes", "b": "1"}, mounts=True) is expected


def test_bind_mounts_are_needed_where_they_are_asked_for() -> None:
    assert not matches({"hasBindMounts": True}, mounts=False)


def test_stages_prestart_is_createruntime_and_precreate_is_not_the_runtimes() -> None:
    stages = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop", "precreate")
    known = hooks.parse_all([file("/a.json", stages=stages, args=["h"], env=["A=1"], timeout=3)])
    hook = {"path": "/bin/h", "args": ["h"], "env": ["A=1"], "timeout": 3}
    assert staged(known.hooks) == [(stage, hook) for stage in stages[1:-1]]


GOOD: dict[str, Any] = {"version": "1.0.0", "hook": {"path": "/bin/h"}, "when": {"always": True}, "stages": ["poststop"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.1.0"}, "version: '0.1.0' is not '1.0.0'"),
        ({"version": None}, "version: None"),
        ({"hook": {"path": "h"}}, "hook.path: must be an absolute path"),
        ({"hook": {}}, "hook.path"),
        ({"hook": {"path": "/h", "args": "x"}}, "hook.args: must be a list of strings"),
        ({"hook": {"path": "/h", "timeout": 0}}, "hook.timeout"),
        ({"when": {}}, "when: has no condition"),
        ({"when": []}, "when: must be an object"),
        ({"when": {"always": "yes"}}, "when.always: must be true or false"),
        ({"when": {"commands": ["("]}}, "when.commands: '(' is no regular expression"),
        ({"when": {"commands": ["[[:nope:]]"]}}, "when.commands"),
        ({"when": {"annotations": {"[": ""}}}, "when.annotations: '[' is no regular expression"),
        ({"when": {"annotations": ["x"]}}, "when.annotations: must map"),
        ({"stages": []}, "stages: is missing or empty"),
        ({"stages": None}, "stages: is missing or empty"),
        ({"stages": ["later"]}, "stages: 'later' is none of"),
        ({"stages": "poststop"}, "stages: must be a list"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hooks.parse(Path("/a.json"), json.dumps({**GOOD, **change}).encode())
    assert words in caught.value.message


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_bytes_that_are_no_hook(data: bytes) -> None:
    with pytest.raises(ConfigError):
        hooks.parse(Path("/a.json"), data)
