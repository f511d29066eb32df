"""An in-memory exec, for the fake backend."""

from __future__ import annotations

import time

from bridge.ports.runtime import ExitStatus


class FakeExec:
    """A command that ends at once with ``code``."""

    def __init__(self, code: int) -> None:
        self.pid = 4242
        self.deleted = False
        self._code = code

    async def wait(self) -> ExitStatus:
        """Its exit."""
        return ExitStatus(self._code, at_ns=time.time_ns())

    async def kill(self, signal: int) -> None:
        """It has ended already."""

    async def delete(self) -> None:
        """Nothing is left."""
        self.deleted = True
