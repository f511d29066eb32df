"""OCI hooks from directories: which container gets which. Source: oci-hooks(5), schema 1.0.0.

A file of a later directory replaces one of the same name in an earlier one, also when it can't be used: whoever put it there
meant to. Hooks are added in the order of their file names in lower case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import ConfigError
from bridge.host.watched_files import FoundFile

ENDINGS = (".json",)
VERSION = "1.0.0"
PRECREATE = "precreate"
_STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop", PRECREATE)
_RUN_AS = {"prestart": "createRuntime"}
"""prestart is the name that createRuntime had before OCI 1.0.2; they run at the same point."""
_CLASS = re.compile(r"\[:(\w+):\]")
_CLASSES = {
    **{"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "xdigit": "0-9A-Fa-f"},
    **{"space": r"\s", "blank": r" \t", "word": r"\w", "punct": r"!-/:-@\[-`{-~"},
}


@dataclass(frozen=True, slots=True)
class When:
    """Conditions, all of which must hold. ``commands`` holds when one of them matches."""

    always: bool | None = None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()
    has_bind_mounts: bool | None = None

    def holds(self, command: str, annotations: Mapping[str, str], has_mounts: bool) -> bool:
        """Whether all hold for a container."""
        if self.always is False or self.has_bind_mounts is False or (self.has_bind_mounts and not has_mounts):
            return False
        if not all(any(key.search(k) and value.search(v) for k, v in annotations.items()) for key, value in self.annotations):
            return False
        return not self.commands or any(pattern.search(command) for pattern in self.commands)


@dataclass(frozen=True, slots=True)
class Hook:
    """A valid file: ``hook`` is the OCI hook object, ``stages`` without repetition and by the names that the runtime knows."""

    path: Path
    hook: Mapping[str, Any]
    when: When
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HookFiles:
    """The hooks in force, in their order; ``broken`` maps each file that can't be used to its fault."""

    hooks: tuple[Hook, ...] = ()
    broken: Mapping[Path, str] = field(default_factory=dict)

    @property
    def faults(self) -> Mapping[Path, str]:
        """What is wrong, by file."""
        return {path: f"is not used: {fault}" for path, fault in self.broken.items()}

    def matching(self, command: str, annotations: Mapping[str, str], has_mounts: bool) -> list[Hook]:
        """The hooks of a container. ``annotations`` are the pod's and its own as the kubelet gave them; ``has_mounts`` counts
        only mounts that were asked for."""
        return [hook for hook in self.hooks if hook.when.holds(command, annotations, has_mounts)]


def staged(hooks: Iterable[Hook]) -> list[tuple[str, Mapping[str, Any]]]:
    """(stage, OCI hook) of what the runtime runs."""
    return [(stage, hook.hook) for hook in hooks for stage in hook.stages if stage != PRECREATE]


def parse_all(files: Sequence[FoundFile]) -> HookFiles:
    """All hooks. Never raises: what can't be used is broken. Blocks: for a worker thread."""
    chosen = {file.path.name: file for file in files if not (file.fault and file.path.suffix not in ENDINGS)}
    broken = {file.path: file.fault for file in files if file.fault}
    hooks = []
    for name in sorted(chosen, key=str.lower):
        file = chosen[name]
        if not file.fault:
            try:
                hooks.append(parse(file.path, file.data))
            except ConfigError as exc:
                broken[file.path] = exc.message
    return HookFiles(tuple(hooks), broken)


def parse(path: Path, data: bytes) -> Hook:
    """The hook in ``data``. Raises ConfigError with the reason."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"is not JSON: {exc}") from exc
    if not isinstance(given, dict):
        raise ConfigError("must hold a JSON object")
    if given.get("version") != VERSION:
        raise ConfigError(f"version: {given.get('version')!r} is not {VERSION!r}")
    stages = _texts(given.get("stages"), "stages")
    for stage in stages:
        if stage not in _STAGES:
            raise ConfigError(f"stages: {stage!r} is none of {', '.join(_STAGES)}")
    if not stages:
        raise ConfigError("stages: is missing or empty")
    return Hook(path, _hook(given.get("hook")), _when(given.get("when")), tuple(dict.fromkeys(_RUN_AS.get(s, s) for s in stages)))


def _hook(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or not value["path"].startswith("/"):
        raise ConfigError("hook.path: must be an absolute path")
    hook: dict[str, Any] = {"path": value["path"]}
    for key in ("args", "env"):
        if value.get(key) is not None:
            hook[key] = _texts(value[key], f"hook.{key}")
    timeout = value.get("timeout")
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout <= 0:
            raise ConfigError("hook.timeout: must be a number of seconds above 0")
        hook["timeout"] = timeout
    return hook


def _when(value: Any) -> When:
    if not isinstance(value, dict):
        raise ConfigError("when: must be an object")
    flags = {}
    for key in ("always", "hasBindMounts"):
        flags[key] = value.get(key)
        if flags[key] is not None and not isinstance(flags[key], bool):
            raise ConfigError(f"when.{key}: must be true or false")
    pairs = value.get("annotations") or {}
    if not isinstance(pairs, dict) or not all(isinstance(pattern, str) for pattern in pairs.values()):
        raise ConfigError("when.annotations: must map strings to strings")
    annotations = tuple((_pattern(key, "when.annotations"), _pattern(item, "when.annotations")) for key, item in pairs.items())
    commands = tuple(_pattern(item, "when.commands") for item in _texts(value.get("commands"), "when.commands"))
    if not annotations and not commands and flags["always"] is None and flags["hasBindMounts"] is None:
        raise ConfigError("when: has no condition")
    return When(flags["always"], annotations, commands, flags["hasBindMounts"])


def _texts(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where}: must be a list of strings")
    return value


def _pattern(text: str, where: str) -> re.Pattern[str]:
    """A POSIX extended regular expression: Python's but for the classes such as [[:alpha:]]."""
    try:
        return re.compile(_CLASS.sub(lambda found: _CLASSES[found[1]], text), re.ASCII)
    except (re.error, KeyError) as exc:
        raise ConfigError(f"{where}: {text!r} is no regular expression: {exc}") from exc
