"""The null device that a runtime is given: /dev/null, but such that whoever has its descriptor can't change the host's node."""

from __future__ import annotations

import os

from bridge import log
from bridge.host import syscalls

_AT_FDCWD = -100

_logger = log.get("host.null_device")


def open_null() -> int:
    """A descriptor of /dev/null, for reading and writing, which the caller closes. What is written is gone as ever.

    It is of a mount of its own, which is read-only and attached nowhere, so fchown and fchmod fail with EROFS. crun ≤ 1.23 gives its
    standard streams to the user that it starts, and runsc gives them to nobody: the host's own node would then be theirs. Needs
    Linux ≥ 5.12 and CAP_SYS_ADMIN; else it is the host's own, and the log says so.
    """
    try:
        mount = syscalls.open_tree(_AT_FDCWD, os.devnull, recursive=False)
        try:
            syscalls.mount_setattr(mount, set_attributes=syscalls.MOUNT_ATTR_RDONLY)
            return os.open(f"/proc/self/fd/{mount}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(mount)
    except OSError as exc:
        _logger.warning("runtimes get the host's own %s: %s", os.devnull, exc.strerror)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
