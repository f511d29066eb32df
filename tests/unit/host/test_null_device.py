"""The null device that runtimes get."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.host import null_device, syscalls


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A null device of the test's own in the place of the host's."""
    path = tmp_path / "null"
    os.mknod(path, 0o20666, os.makedev(1, 3))
    path.chmod(0o666)
    monkeypatch.setattr(os, "devnull", str(path))
    yield path
    path.unlink()


@pytest.mark.root
def test_whoever_has_it_cannot_change_the_hosts(node: Path) -> None:
    before, open_before = os.stat(node), len(os.listdir("/proc/self/fd"))
    null = null_device.open_null()
    again = os.open(f"/proc/self/fd/{null}", os.O_RDWR)
    try:
        for descriptor in (null, again):
            for owner in (1234, 0):
                with pytest.raises(OSError, match="Read-only file system"):
                    os.fchown(descriptor, owner, owner)
            with pytest.raises(OSError, match="Read-only file system"):
                os.fchmod(descriptor, 0)
            assert os.fstat(descriptor).st_rdev == before.st_rdev
            assert os.write(descriptor, b"x") == 1
            assert os.read(descriptor, 1) == b""
        assert not os.get_inheritable(null)
    finally:
        os.close(again)
        os.close(null)
    after = os.stat(node)
    assert (after.st_uid, after.st_gid, after.st_mode, after.st_ctime_ns) == (0, 0, before.st_mode, before.st_ctime_ns)
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("missing", ["open_tree", "mount_setattr"])
def test_an_old_kernel_gives_the_hosts_own(monkeypatch: pytest.MonkeyPatch, missing: str, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(syscalls, missing, refuse)
    before = len(os.listdir("/proc/self/fd"))
    null = null_device.open_null()
    try:
        assert os.fstat(null).st_rdev == os.stat(os.devnull).st_rdev
        assert os.write(null, b"x") == 1
        assert len(os.listdir("/proc/self/fd")) == before + 1
    finally:
        os.close(null)
