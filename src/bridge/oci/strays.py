"""Processes that lost their keeper: identified beyond doubt, watched without being anyone's parent, or ended.

After a monitor was killed its containers go on as children of the system's init. Their exits can then be asked of the kernel,
through a pidfd that was opened while they lived.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import anyio

from bridge.host import cgroup_kill, cgroups, syscalls
from bridge.monitor.reaper import raw_status
from bridge.monitor.tasks import is_reaped
from bridge.ports.runtime import ExitStatus

LOST_CODE = 255
_POLLS = 100
_POLL_SECONDS = 0.05


class Witness:
    """A pidfd of a container's first process: it knows how that ended even if nobody waited for it (Linux ≥ 6.15)."""

    __slots__ = ("_pidfd",)

    def __init__(self, pidfd: int | None) -> None:
        self._pidfd = pidfd

    @classmethod
    def of(cls, pid: int | None, ticks: int) -> Witness:
        """The witness of process ``pid`` that started at ``ticks``; one that knows nothing when it is gone already."""
        if not pid or not ticks:
            return cls(None)
        try:
            witness = cls(os.pidfd_open(pid))
        except OSError:  # gone, or out of descriptors: then its exit is told as lost, should the monitor be lost too
            return cls(None)
        if start_ticks(pid) != ticks:
            witness.close()
        return witness

    def __del__(self) -> None:
        # A handle that is dropped without a word, as when recovery made it in vain, must not keep a descriptor.
        self.close()

    def close(self) -> None:
        """Let go. Repeatable."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    async def testify(self) -> ExitStatus:
        """How it ended; code 255, reason MonitorLost, when the kernel can't tell."""
        for _ in range(_POLLS):  # it is known only once the process was reaped, for which an init may take seconds
            if self._pidfd is None:
                break
            reaped = is_reaped(self._pidfd)
            status = syscalls.pidfd_exit_code(self._pidfd)
            if status is not None:
                return raw_status(status, time.time_ns())
            if reaped:
                break
            await anyio.sleep(_POLL_SECONDS)
        return ExitStatus(LOST_CODE, reason="MonitorLost")


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, which with the pid names a process for ever; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def end_verbs(binary: Path, container_id: str) -> None:
    """SIGKILL every process of the runtime ``binary`` whose arguments name the container. Blocks for milliseconds."""
    wanted, name = os.fsencode(binary), container_id.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if argv[0] == wanted and name in argv:
                os.kill(int(entry), signal.SIGKILL)


def end_cgroup(cgroup: str, timeout: float) -> None:
    """Kill everyone in ``cgroup`` and remove it, in every hierarchy; absent is success. Blocks. Raises TimedOut, HostError."""
    for directory in cgroups.layout().directories(cgroup):
        cgroup_kill.kill_all(directory, timeout=timeout)
        cgroups.remove_directory(directory)
