"""Which processes the kernel ends first when memory runs out: their oom_score_adj, -1000 (never) to 1000 (proc(5))."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from bridge.errors import HostError
from bridge.host import cgroups

_ROUNDS = 3
_GONE = (errno.ENOENT, errno.ESRCH)


def of(pid: int, *, proc: Path = Path("/proc")) -> int | None:
    """The score of a process, None once it has ended."""
    try:
        return int((proc / str(pid) / "oom_score_adj").read_text())
    except OSError as exc:
        if exc.errno in _GONE:
            return None
        raise HostError(f"can't read the oom_score_adj of process {pid}: {exc.strerror}", errno=exc.errno) from exc


def give_all(directories: Iterable[Path], score: int, *, proc: Path = Path("/proc")) -> None:
    """Give every process of these cgroups ``score``, also those that are forked meanwhile and inherit another. Blocks.

    Raises HostError (EACCES without CAP_SYS_RESOURCE for less than it may have).
    """
    for _ in range(_ROUNDS):
        others = [pid for directory in directories for pid in cgroups.pids(directory) if of(pid, proc=proc) not in (score, None)]
        for pid in others:
            _give(pid, score, proc)
        if not others:
            return


def _give(pid: int, score: int, proc: Path) -> None:
    try:
        (proc / str(pid) / "oom_score_adj").write_text(str(score))
    except OSError as exc:
        if exc.errno not in _GONE:
            raise HostError(f"can't set the oom_score_adj of process {pid} to {score}: {exc.strerror}", errno=exc.errno) from exc
