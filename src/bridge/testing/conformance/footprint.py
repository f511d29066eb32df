"""Memory and CPU of a server with all that serves its pods, the pods' own workload apart. Reads /proc; blocks."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.testing.leaks import Scope

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Footprint:
    """``pss`` in bytes and ``cpu_seconds`` of all but the workload, whose PSS is ``workload``."""

    pss: int
    cpu_seconds: float
    workload: int


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    command: bytes
    where: str
    ticks: int

    def mentions(self, scope: Scope) -> bool:
        words = [os.fsencode(root) for root in scope.roots] + [mark.encode() for mark in scope.cgroup_marks]
        return any(word in self.command or word in self.where.encode() for word in words)


def footprint(scope: Scope, workload: str, proc: Path = Path("/proc")) -> Footprint:
    """Of ``scope``'s processes: its own pids and what descends from them, mentions its directories or is in its cgroups.

    ``workload``: the last argument of the workload's processes. One inside a guest or a sentry is not seen, and counts as overhead.
    """
    table = {process.pid: process for process in _processes(proc)}
    chosen = {pid for pid, process in table.items() if pid in scope.pids or process.mentions(scope)} - {os.getpid()}
    while more := {pid for pid, process in table.items() if process.parent in chosen} - chosen:
        chosen |= more
    own = {pid for pid in chosen if table[pid].command.rstrip(b"\0").endswith(b"\0" + workload.encode())}
    pss = {pid: _pss(proc / str(pid)) for pid in chosen}
    serving = chosen - own
    return Footprint(sum(pss[pid] for pid in serving), sum(table[pid].ticks for pid in serving) / _TICKS, sum(pss[pid] for pid in own))


def _processes(proc: Path) -> list[_Process]:
    found = []
    for entry in os.listdir(proc):
        if entry.isdigit():
            with suppress(*_GONE):
                found.append(_process(proc / entry))
    return found


def _process(directory: Path) -> _Process:
    fields = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
    cgroup = (directory / "cgroup").read_text(errors="replace")
    cwd = ""
    with suppress(*_GONE):
        cwd = os.readlink(directory / "cwd")
    command = (directory / "cmdline").read_bytes()
    return _Process(int(directory.name), int(fields[1]), command, f"{cgroup}\n{cwd}", int(fields[11]) + int(fields[12]))


def _pss(directory: Path) -> int:
    with suppress(*_GONE):
        match = _PSS.search((directory / "smaps_rollup").read_bytes())
        return int(match[1]) * 1024 if match else 0
    return 0
