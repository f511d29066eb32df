"""Reads the same cgroups again and again: their files stay open between looks. Blocking: for worker threads, one at a time.

Measured: a file of the kernel's that is open costs 1 to 4 µs to read, and 14 µs with opening and closing it. A container has
about six, and twenty with details.
An open file keeps no cgroup alive and hinders no removal; what is read of one that is gone is ENODEV.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Collection

from bridge.host import cgroup_details, cgroup_stats
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_paths import CgroupLayout
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.cgroups import layout

_ROOM = 65536
_SHARE = 2
"""The files that stay open are at most this fraction of those that the process may have; little else has files in the server."""


class _Files:
    """The open files of one cgroup; ``None`` is one that is not there."""

    __slots__ = ("directories", "open")

    def __init__(self) -> None:
        self.directories: dict[str, str | None] = {}
        self.open: dict[tuple[str, str], int | None] = {}


class CgroupReader:
    """``limit`` bounds the files that stay open (default: half of what the process may have); more are opened for each look."""

    def __init__(self, *, on: CgroupLayout | None = None, limit: int | None = None) -> None:
        self._given = on
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE if limit is None else limit
        self._kept: dict[str, _Files] = {}
        self._count = 0

    @property
    def open_files(self) -> int:
        """How many files are open between looks."""
        return self._count

    @property
    def hierarchies(self) -> CgroupLayout:
        """Where cgroups are."""
        return self._given or layout()

    def read(self, cgroup: str, *, detailed: bool = False, keep_open: bool = True) -> tuple[CgroupStats, CgroupDetails | None]:
        """What ``cgroup`` (a path from the hierarchies' root) uses now. Raises HostError when a file can't be read.

        Without ``keep_open`` no more files are left open than there were.
        """
        hierarchies = self.hierarchies
        kept = self._kept.get(cgroup)
        if kept is None:
            kept = _Files()
            if keep_open:
                self._kept[cgroup] = kept
        seen: dict[tuple[str, str], bytes] = {}  # parsers of both kinds want some files

        def text(controller: str, name: str) -> bytes:
            key = (controller, name)
            if key not in seen:
                seen[key] = self._text(hierarchies, cgroup, kept, key, keep_open)
            return seen[key]

        found = cgroup_stats.parse(text, is_v2=hierarchies.is_v2)
        if found.cpu_ns is None and found.memory is None:  # it is gone, or was not there yet: nothing of it is worth remembering
            self.drop(cgroup)
            return found, None
        return found, cgroup_details.parse(text, is_v2=hierarchies.is_v2) if detailed else None

    def keep_only(self, cgroups: Collection[str]) -> None:
        """Close the files of all others."""
        for cgroup in [each for each in self._kept if each not in cgroups]:
            self.drop(cgroup)

    def close(self) -> None:
        """Close every file; a later look opens them again."""
        self.keep_only(())

    def successor(self) -> CgroupReader:
        """Another one, that may have open what this one may have and has not: this one's user does not come back for now."""
        return CgroupReader(on=self._given, limit=max(0, self._limit - self._count))

    def inherit(self, before: CgroupReader) -> None:
        """``before``, whose successor this is, has come back: its files are closed, and as many may be open here."""
        self._limit += before.open_files
        before.close()

    def drop(self, cgroup: str) -> None:
        """Close its files, if any are open."""
        for descriptor in self._kept.pop(cgroup, _Files()).open.values():
            if descriptor is not None:
                self._count -= 1
                os.close(descriptor)

    def _text(self, hierarchies: CgroupLayout, cgroup: str, kept: _Files, key: tuple[str, str], keep_open: bool) -> bytes:
        if key in kept.open:
            descriptor = kept.open[key]
            return b"" if descriptor is None else _content(descriptor)
        controller, name = key
        if controller not in kept.directories:
            mount = hierarchies.mounts.get(controller)
            kept.directories[controller] = None if mount is None else str(mount.directory(cgroup))
        directory = kept.directories[controller]
        descriptor = None if directory is None else cgroup_stats.open_file(f"{directory}/{name}")
        if descriptor is None:
            if keep_open:
                kept.open[key] = None
            return b""
        if keep_open and self._count < self._limit:
            kept.open[key] = descriptor
            self._count += 1
            return _content(descriptor)
        try:
            return _content(descriptor)
        finally:
            os.close(descriptor)


def _content(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, _ROOM, 0)
    except OSError:  # ENODEV: the cgroup went meanwhile; EOPNOTSUPP: pressure is off
        return b""
