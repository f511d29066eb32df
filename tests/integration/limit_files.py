"""What the kernel holds a running container to, read from its cgroup's files of either version in CRI's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from bridge.host import cgroups


class Limits:
    """The cgroup of process ``pid``, or one whose directories are known."""

    def __init__(self, pid: int = 0) -> None:
        self._directories = cgroups.of_pid(pid) if pid else {}

    @classmethod
    def of(cls, directories: Mapping[str, Path]) -> Self:
        """By controller, "" for v2."""
        found = cls()
        found._directories = directories
        return found

    def text(self, controller: str, name: str) -> str:
        """One file's text without its last newline."""
        directory = cgroups.controller_directory(self._directories, controller)
        assert directory is not None, controller
        return (directory / name).read_text().strip()

    def directory(self, controller: str) -> Path:
        directory = cgroups.controller_directory(self._directories, controller)
        assert directory is not None, controller
        return directory

    @property
    def shares(self) -> int:
        """cpu.shares; on v2 the weight, which stands for several of them."""
        return int(self.text("cpu", "cpu.weight" if cgroups.is_v2() else "cpu.shares"))

    @property
    def quota(self) -> tuple[int, int]:
        """Quota (-1: none) and period."""
        if cgroups.is_v2():
            quota, period = self.text("cpu", "cpu.max").split()
            return -1 if quota == "max" else int(quota), int(period)
        return int(self.text("cpu", "cpu.cfs_quota_us")), int(self.text("cpu", "cpu.cfs_period_us"))

    @property
    def cpuset(self) -> tuple[str, str]:
        return self.text("cpuset", "cpuset.cpus"), self.text("cpuset", "cpuset.mems")

    @property
    def memory(self) -> int:
        """Bytes, -1 for none."""
        if cgroups.is_v2():
            return _bytes(self.text("memory", "memory.max"))
        return _bytes(self.text("memory", "memory.limit_in_bytes"))

    @property
    def memory_and_swap(self) -> int:
        """Bytes, -1 for none."""
        if cgroups.is_v2():
            swap = _bytes(self.text("memory", "memory.swap.max"))
            return -1 if swap < 0 else swap + self.memory
        return _bytes(self.text("memory", "memory.memsw.limit_in_bytes"))

    @property
    def pids(self) -> int:
        return _bytes(self.text("pids", "pids.max"))

    def hugepages(self, size: str) -> int:
        return _bytes(self.text("hugetlb", f"hugetlb.{size}.max" if cgroups.is_v2() else f"hugetlb.{size}.limit_in_bytes"))


def _bytes(text: str) -> int:
    return -1 if text == "max" or int(text) >= 1 << 62 else int(text)
