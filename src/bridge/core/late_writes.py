"""Facts that the disk would not take when they happened: kept in memory, written as soon as it does.

A container that ended has ended, and what is removed is gone, whether the disk is full or not: refusing the fact would leave a
container running for ever in everybody's eyes, and a full disk could not be emptied by removing pods. So these changes are published
at once. A crash before they are written costs nothing that can't be found out again: recovery asks the monitor and the runtime how
a recorded container is, and a removal is repeated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

import anyio

from bridge import log
from bridge.errors import CorruptData, HostError

_logger = log.get("core.store")
_PAUSE_SECONDS = 1.0

Work = Callable[[sqlite3.Connection], object]


class LateWrites:
    """The writes that are owed, newest of each record. ``write`` commits one to the database."""

    def __init__(self, write: Callable[[Work], Awaitable[None]]) -> None:
        self._write = write
        self._owed: dict[str, Work] = {}
        self._some = anyio.Event()

    def __len__(self) -> int:
        return len(self._owed)

    async def commit(self, ident: str, work: Work, *, fact: bool) -> None:
        """Write now; a ``fact`` that the disk refuses is owed instead of raised. What was owed of ``ident`` is overtaken by ``work``."""
        try:
            await self._write(work)
        except (HostError, CorruptData) as exc:
            if not fact:
                raise
            _logger.error("%s: the record is behind what happened until the disk takes it: %s", ident[:13], exc)
            self._owed[ident] = work
            self._some.set()
        else:
            self._owed.pop(ident, None)

    async def settle(self) -> None:
        """Write what is owed, as far as the disk takes it now."""
        for ident, work in tuple(self._owed.items()):
            try:
                await self._write(work)
            except (HostError, CorruptData):
                return
            if self._owed.get(ident) is work:  # else it was overtaken meanwhile
                del self._owed[ident]
                _logger.info("%s: the record is up to date again", ident[:13])

    async def keep(self) -> None:
        """Settle again and again while something is owed; runs until it is cancelled."""
        while True:
            await self._some.wait()
            await anyio.sleep(_PAUSE_SECONDS)
            await self.settle()
            if not self._owed:
                self._some = anyio.Event()
