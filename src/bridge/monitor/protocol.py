"""The monitor's wire protocol, sans I/O: frames of JSON over a unix stream socket, descriptors as SCM_RIGHTS.

A frame is ``u32 length, u8 descriptors`` (big-endian), then ``length`` bytes of a JSON object. Its descriptors travel with its
first byte, in order, at most MAX_FDS. Requests ``{"id", "op", …}`` are answered in any order by ``{"id", "ok": …}`` or
``{"id", "error": {"kind", "message", …}}``, kind being a class of bridge.errors or LaunchFailed. ``{"op": "cancel", "id"}`` gives
up the request of that id and is not answered. The monitor also pushes ``{"event": "exit", "task", "exit"}`` to every client, and to one
that asked to share ``{"event": "held", …}`` with the parameters of adopt and the descriptors, and ``{"event": "stdin_closed", "task"}``.

| op | parameters (descriptors) | ok |
|---|---|---|
| hello | | version, abilities, pid, start_ns, nofile, program |
| launch | task, argv, before, exit_argv, cwd, pid_file, env, console_socket, timeout, on_failure, and as in hold | pid |
| exec | task, argv, cwd, pid_file, env, timeout, fds: which of stdin, stdout, stderr (they) | pid |
| adopt | task, pid, start_ticks, exit_argv (with it cwd, env); of its stdio: terminal, stdin_once, log_path, fds (they) | null |
| share | | null |
| wait | task | exit |
| kill | task, signal, group | null |
| reopen_log, close_stdin, forget | task | null |
| resize | task, width, height | null |
| hold | task, directory, terminal, stdin, stdin_once, log_path, owner | null |
| ended | task, exit, drain | null, when its output was logged |
| stdin_closed | task | null, when its stdin was closed here |
| spool | task, fifo, path | null |
| attach | task, fds: which of stdin, stdout, stderr (they) | null, when the session has ended |
| tasks | task (only that one; absent: all) | a list of task objects |
| renew | argv, env | nothing: the connection ends, and the same monitor answers by a new program |
| shutdown | force | null |

hold makes and drains the fifos stdin, stdout and stderr in a directory, for a process that another (a shim) runs; its task lasts
until ``ended`` tells the exit and ``forget`` releases it. spool keeps a fifo read, and the last of what came in a file, until
``forget``. Both change nothing when they are repeated.

A launch runs the argument lists of ``before`` first, each to its end, without the container's stdio. With ``exit_argv`` the process
in the pid file is the sandbox's that the container lives in; that command tells the exit, as ``{"exitStatus": N}`` on its stdout.

A bad frame ends its connection; a bad parameter ends its request with InvalidRequest naming the field. Other versions of this
protocol are recognised by ``hello``: fields may be added, and unknown ones are ignored by both sides.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge import errors
from bridge.ports.runtime import ExitStatus

VERSION = 1
ABILITIES = ("hold", "told", "share", "renew")
"""What this monitor can do beyond what every monitor of this version can; ``hello`` tells a server that is newer or older."""
MAX_FRAME = 8 << 20
"""Largest payload in bytes; the task list of 10 000 containers fits."""
MAX_FDS = 3

_HEADER = struct.Struct("!IB")

Message = dict[str, Any]


class BadFrame(errors.CorruptData):
    """The peer broke the framing; its connection is of no more use."""


class LaunchFailed(errors.BridgeError):
    """A runtime verb failed. ``exit_code`` None: it timed out; negative: killed by that signal; 0: it lied (no usable pid).

    ``stderr_tail`` holds the last lines of its stderr, empty for an exec, whose stderr belongs to the caller.
    """

    def __init__(self, exit_code: int | None, stderr_tail: Sequence[str] = ()) -> None:
        status = "timed out" if exit_code is None else f"exit code {exit_code}"
        super().__init__(f"launch failed ({status}): {'; '.join(stderr_tail) or 'nothing on stderr'}")
        self.exit_code = exit_code
        self.stderr_tail = tuple(stderr_tail)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What the monitor holds of one task. ``kind`` is container, told (one in a sandbox, whose pid that is), exec, held or spool.

    ``pid`` is 0 while it is launched, and of the last two.
    """

    id: str
    kind: str
    pid: int
    exit: ExitStatus | None = None
    log_path: Path | None = None
    lost_bytes: int = 0


def encode(message: Mapping[str, Any], descriptors: int = 0) -> bytes:
    """One frame that announces ``descriptors`` of them. Raises LimitExceeded beyond MAX_FRAME or MAX_FDS."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    if len(payload) > MAX_FRAME or descriptors > MAX_FDS:
        raise errors.LimitExceeded(f"a monitor message of {len(payload)} bytes and {descriptors} descriptors is too large")
    return _HEADER.pack(len(payload), descriptors) + payload


@dataclass(frozen=True, slots=True)
class Frame:
    """One received message with its descriptors, which the receiver now owns."""

    message: Message
    fds: tuple[int, ...] = ()


class Decoder:
    """Cuts received bytes into frames and hands each its descriptors, however the bytes were split."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Frame]:
        """The frames that ``data`` completes. Raises BadFrame; ``close`` then releases the descriptors not handed out."""
        self._data += data
        self._fds.extend(fds)
        frames: list[Frame] = []
        try:
            self._cut(frames)
        except BadFrame:
            for frame in frames:
                self._fds.extend(frame.fds)
            raise
        return frames

    def _cut(self, frames: list[Frame]) -> None:
        while len(self._data) >= _HEADER.size:
            length, descriptors = _HEADER.unpack_from(self._data)
            if length > MAX_FRAME or descriptors > MAX_FDS:
                raise BadFrame(f"frame of {length} bytes and {descriptors} descriptors")
            if descriptors > len(self._fds):
                raise BadFrame("descriptors announced but not sent")
            end = _HEADER.size + length
            if len(self._data) < end:
                break
            message = _parse(bytes(self._data[_HEADER.size : end]))
            del self._data[:end]
            frames.append(Frame(message, tuple(self._fds.popleft() for _ in range(descriptors))))
        if not self._data and self._fds:
            raise BadFrame("descriptors sent but not announced")

    def close(self) -> None:
        """Close the descriptors that no complete frame claimed."""
        while self._fds:
            os.close(self._fds.popleft())


def _parse(payload: bytes) -> Message:
    try:
        message = json.loads(payload)
    except ValueError as exc:
        raise BadFrame(f"payload is not JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise BadFrame("payload is not a JSON object")
    return message


def exit_to_wire(status: ExitStatus) -> Message:
    """``status`` as a JSON object."""
    return asdict(status)


def exit_from_wire(wire: Mapping[str, Any]) -> ExitStatus:
    """Inverse of ``exit_to_wire``; unknown fields of a newer monitor are ignored."""
    return ExitStatus(
        code=int(wire["code"]),
        signal=wire.get("signal"),
        oom_killed=bool(wire.get("oom_killed")),
        at_ns=int(wire.get("at_ns", 0)),
        reason=str(wire.get("reason", "")),
    )


def info_from_wire(wire: Mapping[str, Any]) -> TaskInfo:
    """A TaskInfo from an element of the answer to ``tasks``."""
    return TaskInfo(
        id=str(wire["id"]),
        kind=str(wire["kind"]),
        pid=int(wire["pid"]),
        exit=exit_from_wire(wire["exit"]) if wire.get("exit") else None,
        log_path=Path(wire["log_path"]) if wire.get("log_path") else None,
        lost_bytes=int(wire.get("lost_bytes", 0)),
    )


_KINDS: dict[str, type[errors.BridgeError]] = {
    cls.__name__: cls
    for cls in (
        errors.AlreadyExists,
        errors.Denied,
        errors.HostError,
        errors.IllegalTransition,
        errors.InUse,
        errors.InvalidRequest,
        errors.LimitExceeded,
        errors.NotFound,
        errors.TimedOut,
        errors.Unavailable,
        errors.Unsupported,
    )
}


def error_to_wire(exc: errors.BridgeError) -> Message:
    """``exc`` as the ``error`` object of an answer; a class without a kind of its own becomes HostError."""
    if isinstance(exc, LaunchFailed):
        return {"kind": "LaunchFailed", "message": exc.message, "exit_code": exc.exit_code, "stderr_tail": exc.stderr_tail}
    kind = type(exc).__name__
    return {"kind": kind if kind in _KINDS else "HostError", "message": str(exc)}


def error_from_wire(wire: Mapping[str, Any]) -> errors.BridgeError:
    """The exception to raise for an ``error`` object."""
    if wire.get("kind") == "LaunchFailed":
        return LaunchFailed(wire.get("exit_code"), [str(line) for line in wire.get("stderr_tail", ())])
    return _KINDS.get(str(wire.get("kind")), errors.HostError)(str(wire.get("message", "the monitor gave no reason")))
