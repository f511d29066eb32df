"""What a runtime says when it fails: its JSON log lines, cut to a tail, and the kind of failure they tell of. Pure.

Sources: the ``--log-format json`` of runc (logrus), crun and youki: one object a line with ``msg`` and ``level``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

TAIL_LINES = 6
_QUIET = {"debug", "trace", "info"}
# runc: exec: "nope": executable file not found in $PATH | exec: "/nope": stat /nope: no such file or directory
# crun: executable file `nope` not found in $PATH: No such file or directory; youki: executable 'nope' … not found
_NOT_FOUND = re.compile(
    r"exec: \"[^\"]*\": .*(?:not found|no such file)|executable [^:]*not found|open executable: No such file", re.IGNORECASE
)
# runc: exec: "/x": permission denied | exec /x: exec format error
# crun: open executable: Permission denied | exec `x`: Exec format error | the path `/x` is not a regular file: … (since 1.14)
_NOT_EXECUTABLE = re.compile(
    r"exec: \"[^\"]*\": (?:permission denied|is a directory|operation not permitted)"
    r"|open executable: (?:Permission denied|Operation not permitted|Is a directory)|exec format error|exec [^:]*: Permission denied"
    r"|the path [^:]* is not (?:a regular file|executable)",
    re.IGNORECASE,
)

NOT_FOUND_CODE = 127
NOT_EXECUTABLE_CODE = 126
START_ERROR_CODE = 128
"""What containerd reports for a container that could not be started (reason StartError)."""


def parse_log(text: str) -> tuple[str, ...]:
    """The messages of the last lines; below warning only if there is nothing graver. A line that is not JSON stays as it is."""
    grave: list[str] = []
    quiet: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        message, level = _entry(line)
        (quiet if level in _QUIET else grave).append(message)
    return tuple((grave or quiet)[-TAIL_LINES:])


def _entry(line: str) -> tuple[str, str]:
    try:
        found = json.loads(line)
    except ValueError:
        return line.strip(), ""
    if not isinstance(found, dict) or not isinstance(found.get("msg"), str):
        return line.strip(), ""
    return found["msg"].strip(), str(found.get("level", "")).lower()


def merge(log: Sequence[str], stderr: Sequence[str]) -> tuple[str, ...]:
    """The log's messages, then what stderr says beyond them (runc says the same on both)."""
    extra = [line for line in parse_log("\n".join(stderr)) if not any(line in message or message in line for message in log)]
    return tuple([*log, *extra][-TAIL_LINES:])


def start_code(tail: Sequence[str]) -> int:
    """Exit code to report for a process that the runtime could not start: 127 not found, 126 not executable, else 128."""
    said = "\n".join(tail)
    if _NOT_EXECUTABLE.search(said):
        return NOT_EXECUTABLE_CODE
    return NOT_FOUND_CODE if _NOT_FOUND.search(said) else START_ERROR_CODE
