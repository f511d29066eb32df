"""The sysfs of a network namespace: writable again after somebody made all of it read-only, mount by mount as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError, NotFound
from bridge.host import mounts, namespaces, syscalls, sysfs

pytestmark = pytest.mark.root


async def test_a_later_mount_can_be_writable(tmp_path: Path) -> None:
    pins = await namespaces.create(tmp_path / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
    place = tmp_path / "sys"
    place.mkdir()

    def mount_read_only() -> None:
        with open(pins["net"]) as pin:
            syscalls.setns(pin.fileno(), syscalls.CLONE_NEWNET)
        syscalls.mount("sysfs", place, "sysfs", syscalls.MS_RDONLY)

    try:
        await namespaces.in_own_thread(mount_read_only)
        [before] = [each for each in mounts.read_mountinfo() if each.target == str(place)]
        assert ("ro" in before.options, "ro" in before.super_options) == (True, True)
        await sysfs.make_writable(pins["net"])
        [after] = [each for each in mounts.read_mountinfo() if each.target == str(place)]
        assert ("ro" in after.options, "rw" in after.super_options) == (True, True)
    finally:
        await mounts.unmount(place)
        await namespaces.remove(tmp_path / "ns")


async def test_no_such_namespace(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await sysfs.make_writable(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(HostError):
        await sysfs.make_writable(tmp_path / "file")
