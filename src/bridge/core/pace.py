"""When something that is asked for again and again is read again: once a period while somebody asks, soon after each list, else never."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

_EARLY = 0.97
"""A round begins after this share of a period: before anything is older than a period, and after who asks once a period has asked again.

His question brings a round, and another one just before it would be read for nobody.
"""
_SOON_SECONDS = 0.5
_LEAST_SECONDS = 1.0
"""Between the beginnings of two rounds, however often somebody asks."""


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Seconds. ``period`` bounds the age of what is told; unasked it goes on for ``idle``; ``at_once`` bounds the backends asked.

    ``count_processes``: details have the processes' counts, the dearest part of them.
    """

    period: float = 10.0
    idle: float = 60.0
    at_once: int = 8
    count_processes: bool = True


class Pace:
    """One loop's rhythm, on the event loop's clock."""

    def __init__(self, settings: SamplerSettings) -> None:
        self._settings = settings
        self._asked = self._began = float("-inf")
        self._due = float("inf")
        self._soon = False
        self._nudged = anyio.Event()

    @property
    def asleep(self) -> bool:
        """Whether nobody has asked for so long that no round will come."""
        return anyio.current_time() - self._asked > self._settings.idle

    def asked(self) -> None:
        """Somebody asked: a round comes soon. Who asks twice wants to see a difference, as crictl does after a second."""
        now = anyio.current_time()
        if self.asleep or not self._soon:
            self._soon = True
            self._due = max(now + _SOON_SECONDS, self._began + _LEAST_SECONDS)
            self._nudged.set()
        self._asked = now

    async def keep(self, work: Callable[[], Awaitable[object]], rest: Callable[[], Awaitable[object]]) -> None:
        """Call ``work`` each time that a round is due and ``rest`` each time before sleeping, for ever."""
        while True:
            self._nudged = anyio.Event()
            now = anyio.current_time()
            if self.asleep:
                await rest()
                if self.asleep:
                    await self._nudged.wait()
            elif now >= self._due:
                self._began, self._soon = now, False
                self._due = now + _EARLY * self._settings.period
                await work()
            else:
                with anyio.move_on_at(min(self._due, self._asked + self._settings.idle + 0.001)):
                    await self._nudged.wait()
