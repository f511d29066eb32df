"""Room on file systems and names of block devices."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bridge.host import filesystems


def test_a_file_system_is_what_statvfs_says(tmp_path: Path) -> None:
    before = time.time_ns()
    found = filesystems.look([tmp_path, tmp_path / "gone"], []).rooms
    assert set(found) == {tmp_path}
    room, kernel = found[tmp_path], os.statvfs(tmp_path)
    assert before <= room.at_ns <= time.time_ns()
    assert room.total_bytes == kernel.f_blocks * kernel.f_frsize
    assert room.inodes == (kernel.f_files or None)
    assert (room.free_inodes is None) == (not kernel.f_files)


def test_devices_are_called_as_the_kernel_calls_them(tmp_path: Path) -> None:
    (tmp_path / "8:16").symlink_to("../../devices/pci0000:00/block/sdb")
    owner = os.stat(tmp_path).st_dev
    (tmp_path / f"{os.major(owner)}:{os.minor(owner)}").symlink_to("../../devices/virtual/block/dm-0")
    found = filesystems.look([tmp_path], [(8, 16), (0, 77)], sysfs=tmp_path)
    assert found.names == {(8, 16): "/dev/sdb"}
    assert found.rooms[tmp_path].device == "/dev/dm-0"
    assert filesystems.name_of((8, 16), found.names) == "/dev/sdb"
    assert filesystems.name_of((0, 77), found.names) == "0:77"


def test_a_file_system_without_a_device(tmp_path: Path) -> None:
    owner = os.stat(tmp_path).st_dev
    found = filesystems.look([tmp_path], [], sysfs=tmp_path)
    assert found.rooms[tmp_path].device == f"{os.major(owner)}:{os.minor(owner)}"
