"""Cgroups that nobody made before us, with those of their parents that were missing too; and their removal.

Blocking; for worker threads.
"""

from __future__ import annotations

import errno
from pathlib import PurePosixPath

from bridge.errors import HostError
from bridge.host import cgroups


def first_missing(cgroup: str) -> str:
    """The topmost part of ``cgroup`` that exists in no hierarchy; "" when all of it is there."""
    missing = ""
    for part in [PurePosixPath(cgroup), *PurePosixPath(cgroup).parents]:
        if part == PurePosixPath("/") or any(directory.exists() for directory in cgroups.layout().directories(str(part))):
            break
        missing = str(part)
    return missing


def remove(cgroup: str, top: str) -> bool:
    """Remove ``cgroup`` with all in it, then its parents up to ``top`` as far as they are empty: others may use them by now.

    Whether ``top`` is gone too. Absent is success. Raises HostError, TimedOut when processes are left in ``cgroup``.
    """
    if not remove_empty(cgroup):  # needs no descriptor: there may be none left
        cgroups.remove(cgroup)
    parents = [part for part in PurePosixPath(cgroup).parents if part.is_relative_to(top)]
    return all(remove_empty(str(part)) for part in parents)


def remove_empty(cgroup: str) -> bool:
    """Remove ``cgroup`` where nothing is in it; whether it is gone everywhere. Raises HostError."""
    empty = True
    for directory in cgroups.layout().directories(cgroup):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise HostError(f"can't remove cgroup {directory}: {exc.strerror}", errno=exc.errno) from exc
            empty = False
    return empty
