"""Typed reading of request parameters: a wrong or missing one is InvalidRequest naming the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import InvalidRequest

_NO_ID = (1 << 32) - 1
STDIO = ("stdin", "stdout", "stderr")


def text(message: Mapping[str, Any], field: str) -> str:
    """A non-empty string."""
    value = message.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest("must be a non-empty string", field=field)
    return value


def integer(message: Mapping[str, Any], field: str, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``."""
    value = message.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"must be an integer from {low} to {high}", field=field)
    return value


def flag(message: Mapping[str, Any], field: str) -> bool:
    """A boolean, false when absent."""
    value = message.get(field, False)
    if not isinstance(value, bool):
        raise InvalidRequest("must be true or false", field=field)
    return value


def seconds(message: Mapping[str, Any], field: str) -> float:
    """A positive, finite number of seconds, at most a day."""
    value = message.get(field)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 86400:
        raise InvalidRequest("must be a number of seconds from 0 to 86400", field=field)
    return float(value)


def path(message: Mapping[str, Any], field: str) -> Path:
    """An absolute path."""
    value = Path(text(message, field))
    if not value.is_absolute():
        raise InvalidRequest("must be an absolute path", field=field)
    return value


def optional_path(message: Mapping[str, Any], field: str) -> Path | None:
    """An absolute path, or None when absent or null."""
    return None if message.get(field) is None else path(message, field)


def owner(message: Mapping[str, Any]) -> tuple[int, int] | None:
    """``owner`` as uid and gid, or None when absent or null."""
    value = message.get("owner")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(one) is int and 0 <= one < _NO_ID for one in value):
        raise InvalidRequest("must be a uid and a gid", field="owner")
    return value[0], value[1]


def strings(message: Mapping[str, Any], field: str, *, empty: bool = False) -> list[str]:
    """A list of strings without NUL; ``empty`` allows an absent or empty one."""
    value = message.get(field, [] if empty else None)
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value) or not (value or empty):
        raise InvalidRequest("must be a list of strings", field=field)
    return value


def environment(message: Mapping[str, Any]) -> dict[str, str] | None:
    """The ``env`` object, or None when absent or null."""
    value = message.get("env")
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) and "\0" not in item for item in value.values()):
        raise InvalidRequest("must be an object of strings", field="env")
    return value


def verbs(message: Mapping[str, Any]) -> list[list[str]]:
    """``before``: a list of argument lists, absent for none."""
    value = message.get("before", [])
    if not isinstance(value, list):
        raise InvalidRequest("must be a list of lists of strings", field="before")
    return [strings({"before": verb}, "before") for verb in value]


def wait_command(message: Mapping[str, Any]) -> WaitCommand | None:
    """``exit_argv`` with the request's task, cwd and env; None when absent or empty."""
    argv = strings(message, "exit_argv", empty=True)
    return WaitCommand(text(message, "task"), argv, path(message, "cwd"), environment(message)) if argv else None


@dataclass(frozen=True, slots=True)
class WaitCommand:
    """What tells the exit of container ``task``."""

    task: str
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The stdio descriptors of an exec or attach request; None where the client gave none."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


def descriptors(message: Mapping[str, Any], fds: tuple[int, ...]) -> Descriptors:
    """Match the received ``fds`` with the names in field ``fds``."""
    names = strings(message, "fds", empty=True)
    if len(names) != len(fds) or len(set(names)) != len(names) or not set(names) <= set(STDIO):
        raise InvalidRequest(f"must name each of the {len(fds)} descriptors sent, out of {', '.join(STDIO)}", field="fds")
    return Descriptors(**dict(zip(names, fds, strict=True)))


@dataclass(frozen=True, slots=True)
class Launch:
    """A runtime verb to run: what launch and exec have in common."""

    task: str
    argv: list[str]
    cwd: Path
    pid_file: Path
    env: dict[str, str] | None
    timeout: float
    on_failure: list[str]
    console_socket: Path | None
    terminal: bool
    stdin: bool
    stdin_once: bool
    log_path: Path | None
    owner: tuple[int, int] | None = None
    """The host's uid and gid that the pipes belong to; None: the monitor's own."""
    before: tuple[list[str], ...] = ()
    """Verbs to run first, each to its end, without the container's stdio."""
    told_by: WaitCommand | None = None
    """The command that tells the container's exit; the process in the pid file is then its sandbox's."""

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Launch:
        """From a launch or exec request."""
        launch = cls(
            task=text(message, "task"),
            argv=strings(message, "argv"),
            cwd=path(message, "cwd"),
            pid_file=path(message, "pid_file"),
            env=environment(message),
            timeout=seconds(message, "timeout"),
            on_failure=strings(message, "on_failure", empty=True),
            console_socket=optional_path(message, "console_socket"),
            terminal=flag(message, "terminal"),
            stdin=flag(message, "stdin"),
            stdin_once=flag(message, "stdin_once"),
            log_path=optional_path(message, "log_path"),
            owner=owner(message),
            before=tuple(verbs(message)),
            told_by=wait_command(message),
        )
        if launch.terminal and launch.console_socket is None:
            raise InvalidRequest("a terminal needs it", field="console_socket")
        return launch
