"""The groups of metrics that a configuration chooses from, as CRI-O names them."""

from __future__ import annotations

from enum import StrEnum


class Group(StrEnum):
    """What can be left out together. ``ALWAYS`` can't."""

    ALWAYS = ""
    CPU = "cpu"
    DISK = "disk"
    DISK_IO = "diskIO"
    HUGETLB = "hugetlb"
    MEMORY = "memory"
    NETWORK = "network"
    OOM = "oom"
    PRESSURE = "pressure"
    PROCESS = "process"
    SPEC = "spec"


CHOICES = tuple(group for group in Group if group is not Group.ALWAYS)
"""The groups that a configuration chooses from."""
