"""Did a container end for lack of memory? The kernel counts OOM kills per memory cgroup; its own count at the start is subtracted.

systemd removes a scope with its last process, mostly before anyone could read its count. On v2 the parent's count keeps what
happened in children that are gone, but doesn't say in which; so it is remembered how much of that was told of some container.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bridge.errors import HostError
from bridge.host import cgroups
from bridge.ports.runtime import ExitStatus


class GoneKills:
    """OOM kills in cgroups that are gone, by the cgroups' parent (v2): which of them belong to no container yet."""

    def __init__(self) -> None:
        self._told: dict[Path, int] = {}
        self._inodes: dict[Path, int] = {}

    def begin(self, parent: Path) -> None:
        """From now on kills below ``parent`` are laid to containers; those from before to nobody. Raises OSError."""
        inode = parent.stat().st_ino
        if self._inodes.get(parent) == inode:
            return
        for known in [known for known in self._told if not known.exists()]:
            del self._told[known], self._inodes[known]
        self._told[parent], self._inodes[parent] = count_gone(parent), inode  # of the same name, a new one counts from 0

    def leaves(self, parent: Path, kills: int) -> None:
        """A cgroup with ``kills`` of its own, of which its container knows, is about to go."""
        if parent in self._told:
            self._told[parent] += kills

    def claim(self, parent: Path) -> bool:
        """Lay to one container whatever is nobody's yet; whether there was anything."""
        if parent not in self._told:  # it is gone, and was let go of
            return False
        gone, told = count_gone(parent), self._told[parent]
        self._told[parent] = max(gone, told)
        return gone > told


def count_gone(parent: Path) -> int:
    """OOM kills that ``parent`` counts and none of its children does; 0 on v1, which counts each cgroup by itself. Raises OSError."""
    total = cgroups.oom_kills(parent) if (parent / "memory.events").exists() else 0
    if total == 0:
        return 0
    with os.scandir(parent) as entries:
        return total - sum(cgroups.oom_kills(Path(entry.path)) for entry in entries if entry.is_dir(follow_symlinks=False))


class MemoryWatch:
    """The memory cgroup of a container, with its OOM kills when the container began."""

    __slots__ = ("_before", "_directory", "_gone")

    def __init__(self, directory: Path, gone: GoneKills | None = None) -> None:
        self._directory = directory
        self._gone = gone or GoneKills()
        self._gone.begin(directory.parent)
        self._before = cgroups.oom_kills(directory)

    @classmethod
    def of(cls, pid: int, gone: GoneKills) -> MemoryWatch | None:
        """The watch for a running process; None when it has just ended or its cgroups can't be read."""
        try:
            directory = cgroups.controller_directory(cgroups.of_pid(pid), "memory")
            return None if directory is None else cls(directory, gone)
        except (OSError, HostError):
            return None

    def oom_killed(self, status: ExitStatus) -> bool:
        """Whether the kernel killed something for memory in the container's cgroup since it began. To be asked once, at its end.

        Where the cgroup is gone already, only a container that ended by SIGKILL is believed to have been the victim.
        """
        try:
            kills = cgroups.oom_kills(self._directory)
            if self._directory.exists():
                self._gone.leaves(self._directory.parent, kills)
                return kills > self._before
            return self._gone.claim(self._directory.parent) and status.signal == signal.SIGKILL
        except OSError:
            return False
