"""What a check of this host found, and the window through which checks look at a host.

Checks never touch the host directly: they ask a ``Host``, which tests point at a recorded tree.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """How a finding counts: only ``missing`` keeps pods from running."""

    OK = "ok"
    ADVICE = "advice"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``mend`` is a command or an edit that puts it right; empty when all is well."""

    area: str
    name: str
    state: State
    detail: str
    mend: str = ""


def output_of(argv: Sequence[str]) -> str:
    """What a program writes to stdout, "" when it is absent, fails or takes longer than 10 s."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
        return done.stdout.decode(errors="replace")
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """The host as the checks see it. Files are read below ``root``; ``say`` gives a program's output, "" when it fails."""

    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    find: Callable[[str], str | None] = shutil.which
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    say: Callable[[Sequence[str]], str] = output_of

    def path(self, name: str | Path) -> Path:
        """``name``, an absolute path of the host, below ``root``."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str | Path) -> str:
        """The stripped content of file ``name``; empty when it can't be read."""
        with suppress(OSError):
            return self.path(name).read_text(errors="replace").strip()
        return ""

    def number(self, name: str | Path) -> int | None:
        """The first number in file ``name``, or None."""
        match = re.match(r"-?\d+", self.text(name))
        return int(match[0]) if match else None

    def executable(self, name: str | Path, *, directories: Sequence[Path] = ()) -> Path | None:
        """Where program ``name`` is: itself if absolute, else in ``directories``, else in PATH and the system's sbin."""
        if Path(name).is_absolute():
            return Path(name) if os.access(self.path(name), os.X_OK) else None
        for directory in directories:
            if os.access(self.path(directory / name), os.X_OK):
                return directory / name
        if directories:
            return None
        found = self.find(str(name)) or next(
            (f"{d}/{name}" for d in ("/usr/sbin", "/sbin") if os.access(self.path(f"{d}/{name}"), os.X_OK)), None
        )
        return Path(found) if found else None

    def kernel(self) -> tuple[int, int]:
        """The kernel's version, such as (6, 1)."""
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else (0, 0)


def finding(area: str, name: str, *, ok: bool, good: str, bad: str, mend: str, required: bool = False) -> Finding:
    """A Finding with one of two outcomes."""
    if ok:
        return Finding(area, name, State.OK, good)
    return Finding(area, name, State.MISSING if required else State.ADVICE, bad, mend)
