"""Keeps what is in a container's fifos from being lost with the monitor: the kernel drops it with the last who has a fifo open.

A shim closes its ends as soon as the container has ended. Was the monitor lost just before, its successor would find nothing. So the
server has the outputs open too, without ever reading them.
"""

from __future__ import annotations

import os
from pathlib import Path


class FifoPins:
    """Open ends of the outputs in a directory. Costs a descriptor each, until ``close``."""

    __slots__ = ("__weakref__", "_ends")

    def __init__(self) -> None:
        self._ends: list[int] = []

    def open(self, directory: Path) -> None:
        """Pin what is there of stdout and stderr. Repeatable. Blocks for microseconds."""
        if self._ends:
            return
        for name in ("stdout", "stderr"):
            try:
                self._ends.append(os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
            except OSError:  # a terminal has no stderr; and without descriptors to spare the monitor alone must do
                continue

    def close(self) -> None:
        """Let go. Repeatable."""
        while self._ends:
            os.close(self._ends.pop())

    def __del__(self) -> None:
        # A handle that is dropped without a word must not keep descriptors.
        self.close()
