"""Copies of mounts on this kernel: read-only all the way down, invisible to their origin, gone after one unmount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import mount_copies, mounts, syscalls

pytestmark = pytest.mark.root


@contextmanager
def tmpfs(path: Path) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    syscalls.mount("tmpfs", path, "tmpfs")
    try:
        yield path
    finally:
        syscalls.umount(path, syscalls.MNT_DETACH)


async def test_read_only_reaches_the_mounts_below(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    with tmpfs(tmp_path / "top") as top, tmpfs(top / "inner"):
        await mount_copies.attach(top, target, read_only=True)
        try:
            for place in (target, target / "inner"):
                with pytest.raises(OSError) as failure:
                    (place / "file").touch()
                assert failure.value.errno == errno.EROFS
            (top / "inner" / "seen").touch()
            assert (target / "inner" / "seen").exists()
        finally:
            await mounts.unmount_tree(target)


async def test_unmounting_the_copy_leaves_a_shared_original(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    with tmpfs(tmp_path / "top") as top:
        syscalls.mount("", top, "", syscalls.MS_SHARED)
        with tmpfs(top / "inner"):
            await mount_copies.attach(top, target)
            await mounts.unmount_tree(target)
            assert (top / "inner").is_mount()
            assert not target.is_mount()


async def test_a_descriptor_is_as_good_as_a_path(tmp_path: Path) -> None:
    source, target = tmp_path / "file", tmp_path / "copy"
    source.write_text("content")
    target.touch()
    descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        await mount_copies.attach(descriptor, target, recursive=False)
        assert target.read_text() == "content"
    finally:
        os.close(descriptor)
        await mounts.unmount_tree(target)


async def test_a_failure_attaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError) as failure:
        await mount_copies.attach(tmp_path, tmp_path / "absent")
    assert failure.value.errno == errno.ENOENT
    assert mounts.below(mounts.read_mountinfo(), tmp_path) == []


async def test_the_probe_says_what_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel where a copy can be attached the probe says yes; where a system call is missing, no, and nothing is left open."""
    assert mount_copies.available()
    before = len(os.listdir("/proc/self/fd"))

    def missing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(syscalls, "mount_setattr", missing)
    assert not mount_copies.available()
    assert len(os.listdir("/proc/self/fd")) == before
