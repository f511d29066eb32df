"""Starting the monitor from the server, so that it survives the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bridge
from bridge.errors import HostError
from bridge.host import process

_LAST_LINES = 5


async def spawn(
    socket: Path, *, log_file: Path | None = None, log_level: str = "info", cgroups: Sequence[Path] = (), timeout: float = 10.0
) -> None:
    """Start a monitor that serves ``socket``, and return when it can be connected to.

    It runs detached: no child of this process, in a session of its own, in / and in the directories ``cgroups``, its log
    appended to ``log_file`` (None: dropped). Raises HostError with its own words when it can't start, also when another one already
    serves that socket; TimedOut.
    """
    argv = [sys.executable, "-P", "-S", "-m", "bridge.monitor", "--socket", str(socket), "--log-level", log_level, "--detach"]
    argv += ["--log-file", str(log_file or os.devnull)]
    for directory in cgroups:
        argv += ["--cgroup", str(directory)]
    # -S: none of what site-packages wants to run at start-up has a place there. The package is found by its own directory, also
    # when it is not installed; the monitor takes PYTHONPATH out of its environment.
    source = Path(bridge.__file__).parent.parent
    done = await process.run(argv, env={**os.environ, "PYTHONPATH": str(source)}, timeout=timeout)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split("\n")[-_LAST_LINES - 1 :]).strip()
        raise HostError(f"the monitor did not start (exit code {done.returncode}): {said or 'it said nothing'}")
