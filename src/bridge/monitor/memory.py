"""Did a container end for lack of memory? The kernel counts OOM kills per memory cgroup; its own count at the start is subtracted."""

from __future__ import annotations

import signal
from pathlib import Path

from bridge.errors import HostError
from bridge.host import cgroups
from bridge.ports.runtime import ExitStatus


class MemoryWatch:
    """The memory cgroup of a container and its parent, with their OOM kills when the container began.

    systemd removes a scope with its last process, maybe before anyone could read its count; on v2 the parent's count has it too, but
    also the pod's other containers', so it is believed only for a container that was killed by SIGKILL.
    """

    __slots__ = ("_before", "_directory", "_parent_before")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before = cgroups.oom_kills(directory)
        self._parent_before = cgroups.oom_kills(directory.parent)

    @classmethod
    def of(cls, pid: int) -> MemoryWatch | None:
        """The watch for a running process; None when it has just ended or its cgroups can't be read."""
        try:
            directory = cgroups.controller_directory(cgroups.of_pid(pid), "memory")
            return None if directory is None else cls(directory)
        except (OSError, HostError):
            return None

    def oom_killed(self, status: ExitStatus) -> bool:
        """Whether the kernel killed something for memory in the container's cgroup since it began."""
        try:
            if cgroups.oom_kills(self._directory) > self._before:
                return True
            if self._directory.exists() or status.signal != signal.SIGKILL:
                return False
            return cgroups.oom_kills(self._directory.parent) > self._parent_before
        except OSError:
            return False
