"""A cgroup v1 hierarchy that crun asks for, made where it is absent.

On a host whose controllers are mounted as cgroup v1 one by one, crun refuses to run without a hugetlb hierarchy. Hosts
set up by systemd have it; slim machines may not. Tests and the demo borrow the controller for as long as they run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge import log
from bridge.host import syscalls
from bridge.host.cgroups import layout

_TOP = Path("/sys/fs/cgroup")
_logger = log.get("testing")


@contextmanager
def hugetlb_for_crun(top: Path = _TOP) -> Iterator[bool]:
    """Mount ``top``/hugetlb if this is a v1 host without it; true when it did. Unmounted at the end, unless it's in use."""
    layout.cache_clear()  # another process may have mounted or unmounted it meanwhile
    mounted = layout().mounts
    if "hugetlb" in mounted:
        with _kept(mounted["hugetlb"].point):
            yield False
        return
    if "memory" not in mounted:
        yield False
        return
    target = top / "hugetlb"
    target.mkdir(exist_ok=True)
    syscalls.mount("none", target, "cgroup", 0, "hugetlb")
    layout.cache_clear()
    try:
        yield True
    finally:
        try:
            syscalls.umount(target)
            layout.cache_clear()
            target.rmdir()
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            _logger.warning("%s stays: another process uses it", target)


@contextmanager
def _kept(point: Path) -> Iterator[None]:
    """Keep whoever mounted ``point`` from unmounting it, which would pull it from under the cgroups that we are going to make."""
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(descriptor)
