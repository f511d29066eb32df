"""Statistics of containers, asked of runsc: each question is a process, so they are few (sandbox0#811: 522 pods, load 665).

The server paces its questions. Here a container is asked about again only after an interval, two at once are, and where there are so
many that this would still keep a core busy, the interval grows.

runsc reckons CPU time by ticks of its own clock, also of ticks in which the host had no CPU for it: on a busy node containers would have
used more than their sandbox. They get their shares of that then. A share may shrink while others work, and a counter must not: what was
told last is kept in a file, for the next server too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import BridgeError
from bridge.host import cgroup_stats
from bridge.host.cgroup_stats import CgroupStats, Memory

_logger = log.get("gvisor.stats")
_AT_ONCE = 2
_MANY = 16
"""With more containers than this their questions together take one core at most."""


@dataclass(slots=True)
class _Entry:
    cgroup: str | None
    kept: Path | None
    reckoned_ns: int = 0
    asked_at: float = float("-inf")
    last: CgroupStats | None = None
    turn: anyio.Lock = field(default_factory=anyio.Lock)


class Sampler:
    """``ask`` is Runsc.stats; ``interval`` in seconds is the least between two questions about one container.

    ``look`` reads a cgroup of the host's (blocks).
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[Mapping[str, object]]],
        interval: float,
        look: Callable[[str], CgroupStats] = cgroup_stats.read,
    ) -> None:
        self._ask, self._look = ask, look
        self._least = interval
        self._entries: dict[str, _Entry] = {}
        self._at_once = anyio.CapacityLimiter(_AT_ONCE)
        self._takes = 0.0

    @property
    def interval(self) -> float:
        """Seconds between two questions about one container, now."""
        count = len(self._entries)
        return self._least if count <= _MANY else max(self._least, count * self._takes)

    async def of(self, ident: str, cgroup: str | None = None, kept: Path | None = None) -> CgroupStats | None:
        """What a running container uses, asked now or less than an interval ago; the last known, perhaps None, when runsc fails.

        ``cgroup`` is its sandbox's, from the hierarchies' root; in ``kept`` is the CPU time that was told last.

        The caller sets the deadline; who comes while one asks waits for that answer.
        """
        entry = self._entries.setdefault(ident, _Entry(cgroup, kept))
        async with entry.turn:
            if anyio.current_time() - entry.asked_at >= self.interval:
                async with self._at_once:
                    entry.asked_at = began = anyio.current_time()
                    try:
                        entry.last = await self._bounded(entry, parse(await self._ask(ident), time.time_ns()))
                    except BridgeError as exc:
                        _logger.debug("no statistics of %s: %s", ident[:13], exc)
                    self._takes += (anyio.current_time() - began - self._takes) / 8
        return entry.last

    async def _bounded(self, entry: _Entry, told: CgroupStats) -> CgroupStats:
        """With no more CPU time than the host knows of the sandbox, of which its containers have shares as runsc reckons them."""
        entry.reckoned_ns = told.cpu_ns or 0
        return replace(told, cpu_ns=await run_sync(self._cpu_time, entry)) if entry.reckoned_ns else told

    def _cpu_time(self, entry: _Entry) -> int:
        share = entry.reckoned_ns
        if entry.cgroup is not None:
            spent = self._look(entry.cgroup).cpu_ns
            together = sum(each.reckoned_ns for each in tuple(self._entries.values()) if each.cgroup == entry.cgroup)
            if spent is not None and together > spent:
                share = share * spent // together
        return share if entry.kept is None else _never_back(entry.kept, share)

    def forget(self, ident: str) -> None:
        """It has ended."""
        self._entries.pop(ident, None)


def _never_back(kept: Path, now: int) -> int:
    """``now``, or the larger number in the file. Its container may end meanwhile, and the file with it."""
    try:
        before = int(kept.read_text())
    except (OSError, ValueError):  # the first time; or the server was killed while it wrote
        before = 0
    if now > before:
        with contextlib.suppress(OSError):
            kept.write_text(str(now))
    return max(now, before)


def parse(data: Mapping[str, Any], at_ns: int) -> CgroupStats:
    """``events --stats``: CPU time in ns, memory in bytes (perhaps an even share of the sandbox's), threads.

    It does not say how much of the memory could be reclaimed: the working set is all of it. A runsc from before August 2023 counts the
    threads of the whole sandbox; one that tells of interfaces (April 2024) is younger.
    """
    threads = _number(data, "pids", "current") if "network_interfaces" in data else None
    usage = _number(data, "memory", "usage", "usage")
    memory = None if usage is None else Memory(usage=usage, working_set=usage)
    return CgroupStats(at_ns, cpu_ns=_number(data, "cpu", "usage", "total"), memory=memory, processes=threads)


def _number(data: Any, *keys: str) -> int | None:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, int) and not isinstance(data, bool) else None
