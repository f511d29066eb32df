"""Starting the monitor from the server, so that it survives the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bridge
from bridge.errors import HostError, InUse
from bridge.host import process
from bridge.monitor.client import MonitorClient
from bridge.monitor.place import TAKEN

_LAST_LINES = 5


async def spawn(
    socket: Path, *, log_file: Path | None = None, log_level: str = "info", cgroups: Sequence[Path] = (), timeout: float = 10.0
) -> None:
    """Start a monitor that serves ``socket``, and return when it can be connected to.

    It runs detached: no child of this process, in a session of its own, in / and in the directories ``cgroups``, its log
    appended to ``log_file`` (None: dropped). Raises InUse when another one serves that socket, though perhaps the socket itself was
    deleted; HostError with its own words when it can't start; TimedOut.
    """
    argv = [*_program(socket, log_level), "--detach", "--log-file", str(log_file or os.devnull)]
    for directory in cgroups:
        argv += ["--cgroup", str(directory)]
    done = await process.run(argv, env={**os.environ, **_environment()}, timeout=timeout)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split("\n")[-_LAST_LINES - 1 :]).strip()
        refusal = InUse if done.returncode == TAKEN else HostError
        raise refusal(f"the monitor did not start (exit code {done.returncode}): {said or 'it said nothing'}")


async def renew(client: MonitorClient, socket: Path, *, log_level: str = "info", timeout: float = 10.0) -> None:
    """Have a running monitor go on as the program that this server would start. Raises InUse while somebody would notice, HostError."""
    argv = _program(socket, log_level)
    # A program that can't even be loaded would take the monitor with it.
    done = await process.run([*argv, "--help"], env={**os.environ, **_environment()}, timeout=timeout)
    if done.returncode:
        raise HostError(f"the monitor's program does not run here: {done.stderr.decode(errors='replace').strip()[-200:]}")
    await client.renew(argv, _environment())


def _program(socket: Path, log_level: str) -> list[str]:
    # -S: none of what site-packages wants to run at start-up has a place there.
    return [sys.executable, "-P", "-S", "-m", "bridge.monitor", "--socket", str(socket), "--log-level", log_level]


def _environment() -> dict[str, str]:
    """The package is found by its own directory, also when it is not installed; the monitor takes PYTHONPATH out of its environment."""
    return {"PYTHONPATH": str(Path(bridge.__file__).parent.parent)}
