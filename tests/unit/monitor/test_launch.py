"""The null device that runtimes get."""

from __future__ import annotations

import errno
import os

import pytest

from bridge.host import syscalls
from bridge.monitor import launch


@pytest.mark.parametrize("missing", ["open_tree", "mount_setattr"])
def test_an_old_kernel_gives_the_hosts_own_null_device(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(syscalls, missing, refuse)
    before = len(os.listdir("/proc/self/fd"))
    null = launch._null_device()
    try:
        assert os.fstat(null).st_rdev == os.stat(os.devnull).st_rdev
        assert os.write(null, b"x") == 1
        assert len(os.listdir("/proc/self/fd")) == before + 1
    finally:
        os.close(null)
