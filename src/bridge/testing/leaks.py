"""The leak audit: what a server left behind on this host, as a difference of two snapshots.

A ``Scope`` says what belongs to the server under test, so that other software on the host is never blamed: everything
below its directories, its bridges and their ports, cgroups that carry its name, processes that mention its directories
or descend from its own. Reads only. Used by the integration tests and the demo.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.host import lookup_child, mounts
from bridge.host.lookups import SPARE_CHILDREN

_COMMAND_BYTES = 1 << 16
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError)
_NUMBERED = re.compile(r"^(socket|pipe|anon_inode|mnt|net|ipc|uts|pid):.*")


@dataclass(frozen=True, slots=True)
class Scope:
    """What belongs to the server under test.

    ``roots``: directories of which every mount, file and mentioning process is its own. ``bridges``: network devices whose
    existence and ports are its own. ``cgroup_marks``: words in the path of a cgroup that make it its own. ``pids``:
    processes whose descendants are its own, and whose descriptors are counted. ``shared``: files and directories below the
    roots that are made once on first use and kept on purpose; ``caches``: directories whose content programs keep for later.
    """

    roots: Sequence[Path] = ()
    bridges: Sequence[str] = ()
    cgroup_marks: Sequence[str] = ()
    pids: Sequence[int] = ()
    shared: Sequence[Path] = ()
    caches: Sequence[Path] = ()


KINDS = ("mount", "file", "network device", "cgroup", "process", "descriptor")
Snapshot = Mapping[str, "Counter[str]"]
"""Kind of resource → how often each described resource was there."""
_Table = Mapping[int, tuple[int, str, bytes]]
"""Pid → parent, state letter, command line."""


def snapshot(scope: Scope, *, without: Sequence[str] = ()) -> Snapshot:
    """Everything in ``scope`` that exists now, but the kinds ``without``."""
    table: _Table = dict(_process_table()) if {"process", "descriptor"} - set(without) else {}
    kinds: Mapping[str, Callable[[], Iterable[str]]] = {
        "mount": lambda: _mounts(scope),
        "file": lambda: _files(scope),
        "network device": lambda: _links(scope),
        "cgroup": lambda: _cgroups(scope),
        "process": lambda: _processes(scope, table),
        "descriptor": lambda: _descriptors(scope, table),
    }
    return {kind: Counter(look()) for kind, look in kinds.items() if kind not in without}


def difference(before: Snapshot, after: Snapshot) -> Sequence[str]:
    """One line for each resource that is in ``after`` and was not in ``before``; empty means nothing leaked."""
    lines = []
    for kind, found in after.items():
        extra = found - before.get(kind, Counter())
        lines += [f"{kind}: {what}" + (f" ({count} more)" if count > 1 else "") for what, count in sorted(extra.items())]
    return lines


def settle(scope: Scope, before: Snapshot, *, timeout: float = 5.0, interval: float = 0.05) -> Sequence[str]:
    """As ``difference`` with the present in the kinds of ``before``, once nothing is left or ``timeout`` seconds passed. Blocks.

    Kernel and daemons finish some clean-up a moment after they answered (a dead process's cgroup, a veth's peer).
    """
    deadline = time.monotonic() + timeout
    without = [kind for kind in KINDS if kind not in before]
    while (left := difference(before, snapshot(scope, without=without))) and time.monotonic() < deadline:
        time.sleep(interval)
    return left


def _inside(path: str, roots: Sequence[Path]) -> bool:
    return any(path == str(root) or path.startswith(f"{root}/") for root in roots)


def _mounts(scope: Scope) -> Iterator[str]:
    for mount in mounts.read_mountinfo():
        target = mount.target.removesuffix("//deleted")
        if _inside(target, scope.roots):
            yield f"{mount.fstype} on {target}"


def _files(scope: Scope) -> Iterator[str]:
    """Files, sockets and directories below the roots; IPAM leases and namespace pins are among them. Mounts aren't entered."""
    shared = {str(path) for path in scope.shared}
    for root in scope.roots:
        for directory, names, files in os.walk(root):
            names[:] = [name for name in names if not os.path.ismount(os.path.join(directory, name))]
            found = (os.path.join(directory, name) for name in (*names, *files))
            yield from (path for path in found if path not in shared and not _inside(path, scope.caches))


def _links(scope: Scope) -> Iterator[str]:
    with suppress(*_GONE):
        for name in os.listdir("/sys/class/net"):
            master = os.path.basename(os.path.realpath(f"/sys/class/net/{name}/master"))
            if name in scope.bridges:
                yield name
            elif master in scope.bridges:
                yield f"port of bridge {master}"  # veth names are random


def _cgroups(scope: Scope) -> Iterator[str]:
    if not scope.cgroup_marks:
        return
    hierarchies = {mount.device: mount.target for mount in reversed(mounts.read_mountinfo()) if mount.fstype in ("cgroup", "cgroup2")}
    for top in hierarchies.values():
        for path in _below(top):
            if any(mark in path.removeprefix(top) for mark in scope.cgroup_marks):
                yield path


def _below(cgroup: str) -> Iterator[str]:
    """Every cgroup below. The kernel counts a directory's children as links, so that those without need not be listed."""
    with suppress(*_GONE):
        if os.stat(cgroup).st_nlink == 2:
            return
        with os.scandir(cgroup) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for child in children:
            yield child
            yield from _below(child)


def _processes(scope: Scope, table: _Table) -> Iterator[str]:
    own = os.getpid()
    descendants = _descendants(table, scope.pids)
    descendants -= _helpers(table, descendants)
    words = [os.fsencode(root) for root in scope.roots] + [mark.encode() for mark in scope.cgroup_marks]
    for pid, (_, state, command) in table.items():
        if pid != own and pid not in scope.pids and (pid in descendants or any(word in command for word in words)):
            said = command.replace(b"\0", b" ").decode(errors="replace").strip()
            yield f"{pid} {'(zombie) ' if state == 'Z' else ''}{said[:160]}"


def _process_table() -> Iterator[tuple[int, tuple[int, str, bytes]]]:
    """(pid, (parent, state letter, command line)) of every process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(*_GONE):
                name, _, rest = _content(f"/proc/{entry}/stat").partition(b"(")[2].rpartition(b")")
                state, parent = rest.split(maxsplit=2)[:2]
                yield int(entry), (int(parent), state.decode(), _content(f"/proc/{entry}/cmdline") or name)


def _content(path: str) -> bytes:
    # Hundreds of times an audit, so without a file object.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _COMMAND_BYTES)
    finally:
        os.close(descriptor)


def _descendants(table: _Table, ancestors: Sequence[int]) -> set[int]:
    found = set(ancestors)
    while more := {pid for pid, (parent, _, _) in table.items() if parent in found} - found:
        found |= more
    return found


def _helpers(table: _Table, servers: Collection[int]) -> set[int]:
    """The processes that each of ``servers`` keeps for a while to look at paths; not more of them than it may keep."""
    word = os.fsencode(lookup_child.__file__)
    kept: dict[int, list[int]] = {}
    for pid, (parent, state, command) in sorted(table.items()):
        if parent in servers and state != "Z" and word in command:
            kept.setdefault(parent, []).append(pid)
    return {pid for mine in kept.values() for pid in mine[:SPARE_CHILDREN]}


def _descriptors(scope: Scope, table: _Table) -> Iterator[str]:
    """The descriptors of the scope's processes; those that are only a number to us count by kind."""
    for pid in scope.pids:
        kept = len(_helpers(table, [pid]))
        spare = Counter({f"of process {pid}: socket": kept, f"of process {pid}: anon_inode:[pidfd]": kept})
        for line in _descriptors_of(pid):
            if spare[line]:
                spare[line] -= 1
            else:
                yield line


def _descriptors_of(pid: int) -> Iterator[str]:
    with suppress(*_GONE):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(*_GONE):
                target = os.readlink(f"/proc/{pid}/fd/{number}")
                match = _NUMBERED.match(target)
                yield f"of process {pid}: {match[1] if match and match[1] != 'anon_inode' else target}"
