"""How many processes a cgroup holds and what they have open, from cgroup.procs and /proc. Blocking: for worker threads.

Sources: cgroups(7), proc_pid_fd(5), proc_pid_limits(5), kcmp(2). Processes that share one table of descriptors, as a sandbox of gVisor's
and those by which it catches system calls, have those open once. What can't be known is None: a process that hides its files from the
server, and more of them than ``_LOOKS``, since each costs a system call.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bridge.host import syscalls
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout
from bridge.host.cgroups import layout

_LOOKS = 8192
"""Descriptors of one cgroup that are looked at; some 20 ms."""
_CONTROLLERS = ("memory", "pids", "freezer")
"""Of cgroup v1, where each hierarchy lists the processes: the first that is mounted is asked."""
_OPEN_FILES = re.compile(rb"^Max open files +(\d+) ", re.MULTILINE)
_PROC = Path("/proc")
_ROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """``descriptors`` and, among them, ``sockets`` are of all processes; ``open_files_limit`` is the first one's, None for no limit."""

    processes: int
    descriptors: int | None = None
    sockets: int | None = None
    open_files_limit: int | None = None


def read(cgroup: str, first: int, *, on: CgroupLayout | None = None, proc: Path = _PROC) -> ProcessCounts | None:
    """Of ``cgroup`` (a path from the hierarchies' root) and those below it, whose ``first`` process has this id; None when it is gone."""
    hierarchies = on or layout()
    names = (UNIFIED,) if hierarchies.is_v2 else _CONTROLLERS
    mount = next((hierarchies.mounts[name] for name in names if name in hierarchies.mounts), None)
    pids = [] if mount is None else _pids(mount.directory(cgroup))
    if not pids:
        return None
    descriptors, sockets = _open(pids, proc)
    return ProcessCounts(len(pids), descriptors, sockets, _open_files_limit(proc / str(first)))


def _pids(directory: Path) -> list[str]:
    """Those in ``directory`` and, with v2's rule that only leaves hold processes, in the directories below."""
    try:
        pids = _content(directory / "cgroup.procs").split()
        if directory.stat().st_nlink <= 2:  # the kernel counts a link for each directory in it: most have none
            return [pid.decode() for pid in pids]
        below = [Path(each.path) for each in os.scandir(directory) if each.is_dir(follow_symlinks=False)]
    except OSError:  # ENOENT, ENODEV: it ended meanwhile; EOPNOTSUPP: a threaded cgroup, whose root above lists its processes
        return []
    return list(dict.fromkeys([*(pid.decode() for pid in pids), *(pid for each in below for pid in _pids(each))]))


def _open(pids: list[str], proc: Path) -> tuple[int, int] | tuple[None, None]:
    descriptors = sockets = 0
    tables: list[int] = []
    for pid in pids:
        if not _is_new(tables, int(pid)):
            continue
        directory = f"{proc}/{pid}/fd"
        try:
            names = os.listdir(directory)
            descriptors += len(names)
            if descriptors > _LOOKS:
                return None, None
            for name in names:
                sockets += _is_socket(f"{directory}/{name}")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        except PermissionError:
            return None, None
    return descriptors, sockets


def _is_new(tables: list[int], pid: int) -> bool:
    """Whether its table of descriptors is none of those of ``tables``, which are kept in the kernel's order."""
    low, high = 0, len(tables)
    while low < high:
        middle = (low + high) // 2
        order = syscalls.order_of_files(pid, tables[middle])
        if not order:
            return order is None
        low, high = (low, middle) if order < 0 else (middle + 1, high)
    tables.insert(low, pid)
    return True


def _is_socket(link: str) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except FileNotFoundError:  # it was closed meanwhile
        return False


def _open_files_limit(process: Path) -> int | None:
    try:
        found = _OPEN_FILES.search(_content(process / "limits"))
    except OSError:  # it ended meanwhile
        return None
    return int(found[1]) if found else None


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while more := os.read(descriptor, _ROOM):
            content += more
        return content
    finally:
        os.close(descriptor)
