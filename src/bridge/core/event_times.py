"""Times of events and statuses: the wall clock's, but each later than all before it, of an earlier server too.

A kubelet with evented PLEG drops what seems older than what it knows. So how far times are ahead of the clock that nobody can set (time
since boot) is kept in a file of this boot: a server that starts after the clock was set back goes on where the last one was, also when
what that told of has no record any more. The file changes when somebody sets the clock forward, and hardly ever else.
"""

from __future__ import annotations

import time
from pathlib import Path

import anyio

from bridge import log
from bridge.core import stamps
from bridge.errors import HostError
from bridge.host import files

NAME = "event-times"
_SLACK = 50_000_000
"""Nanoseconds that times may be further ahead than the file says; they are added at the next start."""
_logger = log.get("core.events")


class EventTimes:
    """``newest`` is the latest time on any record, Unix ns."""

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._ahead = self._kept = 0
        self._place: tuple[Path, str] | None = None

    def now(self) -> int:
        """Unix time in ns, later than every time that was given out before."""
        self._newest = stamps.after([self._newest])
        self._ahead = max(self._ahead, self._newest - _since_boot())
        return self._newest

    async def resume(self, path: Path, boot_id: str) -> None:
        """Go on after the times that the last server gave out, by its file at ``path`` if that is of this boot. A file that can't be read
        or written is logged: times are right without it unless the clock is set back.
        """
        self._place = path, boot_id
        try:
            boot, _, kept = (await files.read_text(path, 200)).strip().partition(" ")
        except HostError as exc:
            _logger.warning("%s can't be read: %s", path, exc)
            boot = ""
        if boot == boot_id and kept.isdecimal() and len(kept) < 20:
            self._newest = max(self._newest, _since_boot() + int(kept) + _SLACK)
        self.now()
        await self._write()

    async def keep(self, every: float = 5.0) -> None:
        """Keep the file right, for ever."""
        while True:
            await anyio.sleep(every)
            if self._ahead > self._kept + _SLACK:
                await self._write()

    async def _write(self) -> None:
        if self._place is None:
            return
        path, boot_id = self._place
        self._kept = self._ahead
        try:
            await files.replace(path, f"{boot_id} {self._kept}\n", mode=0o600)
        except HostError as exc:
            _logger.warning("%s can't be written: %s", path, exc)


def _since_boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
