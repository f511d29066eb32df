"""Killing everyone in a cgroup, on v2 and on v1, whatever they fork meanwhile and whoever has frozen them. Blocks: for worker threads."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.errors import HostError, TimedOut
from bridge.host import cgroups

_POLL_SECONDS = 0.002
_FREEZE_SECONDS = 0.2
"""How long a v1 freezer may take: a process in uninterruptible sleep can't be frozen, and must not hold up the kill."""
_FREEZER = "freezer"


def kill_all(directory: Path, *, timeout: float = 5.0) -> None:
    """SIGKILL every process of a cgroup and its descendants, whatever they fork meanwhile; absent means success.

    ``directory`` lies in v2, or in v1's freezer hierarchy (any other v1 hierarchy works too, but a fork bomb may outrun
    it). Returns once none is left. Raises TimedOut with the survivors: those are stuck in the kernel.
    """
    deadline = time.monotonic() + timeout
    while _kill_once(directory):
        left = cgroups.pids(directory)
        if not left:
            return
        _thaw(left)
        if time.monotonic() >= deadline:
            raise TimedOut(f"processes {left} of cgroup {directory} survived SIGKILL for {timeout:g} s")
        time.sleep(_POLL_SECONDS)


def kill_directory(cgroup: str | None) -> Path | None:
    """Where the processes of a cgroup can be found and killed all at once; None where the host can't tell."""
    if cgroup is None:
        return None
    mount = cgroups.layout().mounts.get("" if cgroups.is_v2() else _FREEZER)
    return None if mount is None else mount.directory(cgroup)


def signal_all(directory: Path, number: int, timeout: float) -> None:
    """Signal everyone in a cgroup; SIGKILL until nobody is left. Raises TimedOut, HostError."""
    if number == signal.SIGKILL:
        kill_all(directory, timeout=timeout)
        return
    for pid in cgroups.pids(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_once(directory: Path) -> bool:
    """One round; False when there was nobody to kill."""
    if not cgroups.pids(directory):
        return False
    if cgroups.write(directory / "cgroup.kill", "1"):
        return True
    with _frozen(directory):
        for pid in cgroups.pids(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return True


@contextlib.contextmanager
def _frozen(directory: Path) -> Iterator[None]:
    """Hold a v1 freezer cgroup still, so that nobody forks between the listing and the kill. Elsewhere: nothing."""
    state = directory / "freezer.state"
    try:
        if cgroups.write(state, "FROZEN"):
            deadline = time.monotonic() + _FREEZE_SECONDS
            while cgroups.read(state).strip() == "FREEZING" and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        cgroups.write(state, "THAWED")  # a frozen process dies of its SIGKILL only once thawed


def _thaw(pids: Sequence[int]) -> None:
    """Thaw who lives on: a server that was killed amid a kill has left cgroups frozen, further down or in another hierarchy than this one.

    On v2 the kernel ends the frozen, too.
    """
    for pid in pids:
        with contextlib.suppress(HostError):  # gone by now
            directory = cgroups.of_pid(pid).get(_FREEZER)
            if directory is not None:
                cgroups.write(directory / "freezer.state", "THAWED")
