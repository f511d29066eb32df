"""What a machine may leave behind on the host when its runtime was killed or failed half-way: mounts, processes, directories.

All of it carries the sandbox's id, 64 random hex digits. Mounts go first: Kata shares a root file system with the guest by a
bind mount, and who deletes below that deletes the files behind it. Nothing is deleted while anything is mounted there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from anyio import to_thread

from bridge import log
from bridge.errors import HostError
from bridge.host import files, mounts

_logger = log.get("kata")
_PROGRAMS = (
    "qemu*",
    "cloud-hypervisor*",
    "firecracker*",
    "jailer*",
    "stratovirt*",
    "virtiofsd*",
    "nydusd*",
    "acrn-dm*",
    "containerd-shim-kata*",
    "kata-*",
)
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Places:
    """Where Kata keeps things of a sandbox: below ``run`` in these directories (Go, Rust and 1.x), and in ``state`` on disk (1.x)."""

    run: Path = Path("/run")
    state: Path = Path("/var/lib/vc")

    def of(self, sandbox_id: str) -> tuple[Path, ...]:
        """Directories that are the sandbox's alone."""
        shared = self.run / "kata-containers/shared/sandboxes" / sandbox_id
        return (
            shared,
            self.run / "vc/sbs" / sandbox_id,
            self.run / "vc/vm" / sandbox_id,
            self.run / "kata" / sandbox_id,
            self.state / "sbs" / sandbox_id,
        )


async def remove(sandbox_id: str, places: Places) -> None:
    """End the processes, undo the mounts, then delete the directories. Absent is success. Raises HostError."""
    await end_processes(sandbox_id)
    present = await to_thread.run_sync(lambda: [path for path in places.of(sandbox_id) if path.exists()])
    for directory in present:
        await mounts.unmount_tree(directory)
        if await to_thread.run_sync(_mounted_below, directory):
            raise HostError(f"{directory} still has mounts, and what is behind them must not be deleted")
        await files.remove_tree(directory)


async def end_processes(sandbox_id: str) -> None:
    """SIGKILL what is left of the machine's programs, and wait until it has gone."""
    ended = await to_thread.run_sync(_end_processes, sandbox_id)
    if ended:
        _logger.warning("machine %s had processes left, which were killed: %s", sandbox_id[:13], ", ".join(ended))


def _mounted_below(directory: Path) -> bool:
    return bool(mounts.below(mounts.read_mountinfo(), directory))


def _end_processes(sandbox_id: str) -> list[str]:
    """SIGKILL each process of a known program whose arguments name the sandbox; their names. Blocks until they have gone."""
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    found = [(pid, name) for pid in numbers if (name := _program(pid, sandbox_id))]
    pidfds = []
    for pid, name in found:
        with contextlib.suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
            if _program(pid, sandbox_id) == name:  # else it ended meanwhile, and the number is another's
                signal.pidfd_send_signal(pidfds[-1], signal.SIGKILL)
    try:
        _await_end([pid for pid, _ in found], sandbox_id)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return sorted({name for _, name in found})


def _await_end(pids: list[int], sandbox_id: str) -> None:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while any(_program(pid, sandbox_id) for pid in pids) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _program(pid: int, sandbox_id: str) -> str:
    """The name of process ``pid`` if it is one of Kata's for this sandbox, else ""; a zombie has no arguments any more."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    if sandbox_id.encode() not in argv:
        return ""
    words = [os.path.basename(os.fsdecode(word)) for word in argv.split(b"\0")[:2]]  # the second of a script is its own name
    return next((word for word in words if any(fnmatchcase(word, pattern) for pattern in _PROGRAMS)), "")
