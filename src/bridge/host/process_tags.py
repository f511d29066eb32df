"""Telling the processes that one process forked from all others, wherever they went: by a resource limit that limits nothing.

A limit is inherited over fork and exec, sessions and parents don't matter to it, and RLIMIT_RTTIME counts microseconds of real-time
scheduling alone: one of a hundred thousand years is none, but a number of our choice (setrlimit(2)).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

_TYPE = "RLIMIT_RTTIME"
_LINE = b"Max realtime timeout"
_BASE = 1 << 62


def new() -> int:
    """A tag that no other process has."""
    return _BASE | secrets.randbits(56)


def tagged(process: Mapping[str, Any], tag: int) -> Mapping[str, Any]:
    """``process`` (of an OCI spec) with ``tag``; as it is when it has such a limit of its own."""
    limits = list(process.get("rlimits") or ())
    if any(limit.get("type") == _TYPE for limit in limits):
        return process
    return {**process, "rlimits": [*limits, {"type": _TYPE, "soft": tag, "hard": tag}]}


def find(pids: Iterable[int], tag: int) -> list[int]:
    """Those of ``pids`` that have ``tag``. Blocks for some 20 µs a process."""
    wanted = str(tag).encode()
    found = []
    for pid in pids:
        try:
            descriptor = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has ended
            continue
        try:
            text = os.read(descriptor, 8192)
        except OSError:
            continue
        finally:
            os.close(descriptor)
        line = text.partition(_LINE)[2].partition(b"\n")[0]
        if wanted in line.split():
            found.append(pid)
    return found
