"""How much room file systems have, and what block devices are called. Blocking: for worker threads.

Sources: statvfs(3), Linux's Documentation/admin-guide/abi-stable (sysfs, /sys/dev/block).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK_DEVICES = Path("/sys/dev/block")
Numbers = tuple[int, int]
"""A device's major and minor number."""


@dataclass(frozen=True, slots=True)
class Room:
    """Of one file system, at ``at_ns`` of Unix time; inodes are None where it makes them as they are needed (btrfs)."""

    at_ns: int
    device: str
    total_bytes: int
    inodes: int | None = None
    free_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class Filesystems:
    """``rooms`` by path that was asked for, ``names`` of devices as "/dev/sda"; what is gone is missing."""

    rooms: Mapping[Path, Room] = field(default_factory=dict)
    names: Mapping[Numbers, str] = field(default_factory=dict)


def look(paths: Collection[Path], devices: Collection[Numbers], *, sysfs: Path = _BLOCK_DEVICES) -> Filesystems:
    """The file systems that ``paths`` are on and the names of ``devices``, now."""
    names = {numbers: name for numbers in set(devices) if (name := _name(numbers, sysfs)) is not None}
    return Filesystems({path: room for path in set(paths) if (room := _room(path, sysfs)) is not None}, names)


def name_of(numbers: Numbers, names: Mapping[Numbers, str]) -> str:
    """What ``numbers`` are called; the numbers themselves where there is no name, as of file systems without a device."""
    return names.get(numbers) or _spelt(numbers)


def _room(path: Path, sysfs: Path) -> Room | None:
    try:
        found, owner = os.statvfs(path), os.stat(path).st_dev
    except OSError:  # it was removed or unmounted meanwhile
        return None
    numbers = os.major(owner), os.minor(owner)
    inodes = (found.f_files, found.f_ffree) if found.f_files else (None, None)
    return Room(time.time_ns(), _name(numbers, sysfs) or _spelt(numbers), found.f_blocks * found.f_frsize, *inodes)


def _name(numbers: Numbers, sysfs: Path) -> str | None:
    try:
        return "/dev/" + os.readlink(sysfs / _spelt(numbers)).rpartition("/")[2]
    except OSError:  # none of a block device's
        return None


def _spelt(numbers: Numbers) -> str:
    return f"{numbers[0]}:{numbers[1]}"
