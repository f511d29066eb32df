"""Parameters of requests, as a client of the monitor writes them; read by bridge.monitor.parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.ports.runtime import ContainerIO


def verb(task_id: str, argv: Sequence[str], cwd: Path, pid_file: Path, env: Mapping[str, str] | None, timeout: float) -> dict[str, Any]:
    """What launch and exec have in common; ``timeout`` in seconds."""
    return {
        "task": task_id,
        "argv": list(argv),
        "cwd": str(cwd),
        "pid_file": str(pid_file),
        "env": None if env is None else dict(env),
        "timeout": timeout,
    }


def given(stdin: int | None, stdout: int | None, stderr: int | None) -> tuple[list[str], list[int]]:
    """The names of the descriptors there are, and they."""
    there = {name: fd for name, fd in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)) if fd is not None}
    return list(there), list(there.values())


def stdio(io: ContainerIO) -> dict[str, Any]:
    """What launch and hold have in common."""
    return {
        "terminal": io.terminal,
        "stdin": io.stdin,
        "stdin_once": io.stdin_once,
        "log_path": io.log_path and str(io.log_path),
        "owner": io.owner and list(io.owner),
    }
