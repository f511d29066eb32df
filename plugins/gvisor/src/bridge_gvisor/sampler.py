"""Statistics of containers, asked of runsc at a pace of our own: each question is a process (sandbox0#811: 522 pods, load 665).

One loop asks for those that somebody wants to know about, one container after the other, each at most once an interval. Answers
come from memory; only the first one about a container is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridge import log
from bridge.errors import BridgeError
from bridge.host.cgroup_stats import CgroupStats, Memory

_logger = log.get("gvisor.stats")
_FIRST_WAIT = 2.0
_UNASKED_INTERVALS = 6
"""Who was not asked about for so many intervals is not sampled any more."""
_AT_ONCE = 2


@dataclass(slots=True)
class _Entry:
    wanted_at: float
    asked_at: float = float("-inf")
    last: CgroupStats | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)


class Sampler:
    """``ask`` is Runsc.stats; ``interval`` in seconds. ``run`` must be running for answers to come."""

    def __init__(self, ask: Callable[[str], Awaitable[Mapping[str, object]]], interval: float) -> None:
        self._ask = ask
        self._interval = interval
        self._entries: dict[str, _Entry] = {}
        self._wanted = anyio.Event()

    @property
    def sampled(self) -> frozenset[str]:
        """Those that are asked about now."""
        return frozenset(self._entries)

    async def of(self, ident: str) -> CgroupStats | None:
        """The last that is known of a running container; None when runsc did not say within two seconds."""
        now = anyio.current_time()
        entry = self._entries.get(ident)
        if entry is None:
            entry = self._entries[ident] = _Entry(now)
            self._wanted.set()
        entry.wanted_at = now
        if entry.last is None:
            with anyio.move_on_after(_FIRST_WAIT):
                await entry.answered.wait()
        return entry.last

    def forget(self, ident: str) -> None:
        """It has ended."""
        entry = self._entries.pop(ident, None)
        if entry is not None:
            entry.answered.set()

    async def run(self) -> None:
        """Ask for what is due, for ever."""
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        while True:
            self._wanted = anyio.Event()
            now = anyio.current_time()
            for ident in [key for key, one in self._entries.items() if now - one.wanted_at > _UNASKED_INTERVALS * self._interval]:
                self.forget(ident)
            async with anyio.create_task_group() as group:
                for ident, entry in list(self._entries.items()):
                    if entry.asked_at + self._interval <= now:
                        entry.asked_at = now
                        group.start_soon(self._sample, ident, entry, limiter, name=f"statistics of {ident[:13]}")
            due = min((entry.asked_at for entry in self._entries.values()), default=float("inf")) + self._interval
            with anyio.move_on_at(due):
                await self._wanted.wait()

    async def _sample(self, ident: str, entry: _Entry, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                entry.last = parse(await self._ask(ident), time.time_ns())
            except BridgeError as exc:
                _logger.debug("no statistics of %s: %s", ident[:13], exc)
            finally:
                entry.answered.set()


def parse(data: Mapping[str, Any], at_ns: int) -> CgroupStats:
    """``events --stats``: CPU time in ns, memory in bytes (perhaps an even share of the sandbox's), processes.

    It does not say how much of the memory could be reclaimed: the working set is all of it.
    """
    usage = _number(data, "memory", "usage", "usage")
    memory = None if usage is None else Memory(usage=usage, working_set=usage)
    return CgroupStats(at_ns, cpu_ns=_number(data, "cpu", "usage", "total"), memory=memory, processes=_number(data, "pids", "current"))


def _number(data: Any, *keys: str) -> int | None:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, int) and not isinstance(data, bool) else None
