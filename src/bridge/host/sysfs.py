"""The sysfs of a network namespace: all its mounts are one file system, and that can be read-only as a whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from bridge.errors import HostError
from bridge.host import syscalls
from bridge.host.namespaces import in_own_thread, open_pin


async def make_writable(netns: Path) -> None:
    """Let the sysfs of the network namespace pinned at ``netns`` be mounted writable; mounts that are read-only stay so.

    The first mount decides for the file system: where a runtime makes it read-only (runc does), every later one is, whatever it asks
    for. Without Linux 5.2 nothing is changed. Raises HostError.
    """
    try:
        await in_own_thread(lambda: _make_writable(netns))
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise HostError(f"can't make the pod's sysfs writable: {exc.strerror}", errno=exc.errno) from exc


def _make_writable(netns: Path) -> None:
    pin = open_pin(netns, "net")
    try:
        syscalls.setns(pin, syscalls.CLONE_NEWNET)
    finally:
        os.close(pin)
    mount = syscalls.detached_mount("sysfs")
    try:
        syscalls.reconfigure(mount, "rw")
    finally:
        os.close(mount)
