"""Give a whole tree of files an SELinux label, in a process that can be killed: the tree may be huge, or lie on a dead network mount."""

from __future__ import annotations

import sys

from bridge import log
from bridge.errors import HostError
from bridge.host import process, relabel_child

_logger = log.get("host.relabel")


async def tree(fd: int, label: str, name: str, *, timeout: float, trust_top: bool = False) -> int:
    """Label what is at descriptor ``fd`` (O_PATH) and all below it; how many files were changed. ``name`` is for people.

    Links are not followed and mounts below not entered. With ``trust_top`` nothing is done when the top has the label. File systems
    without labels, or read-only ones, are left as they are and noted in the log. Raises TimedOut, HostError.
    """
    argv = [sys.executable, "-I", "-S", relabel_child.__file__, str(fd), label, "1" if trust_top else "0"]
    done = await process.run(argv, timeout=timeout, pass_fds=[fd])
    if done.returncode in (relabel_child.UNSUPPORTED, relabel_child.READ_ONLY):
        why = "has no SELinux labels of its own" if done.returncode == relabel_child.UNSUPPORTED else "is read-only"
        _logger.info("%s keeps its SELinux labels: the file system %s", name, why)
        return 0
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(f"can't give {name} the SELinux label {label}: {said[-1] if said else f'exit code {done.returncode}'}")
    return int(done.stdout)
