"""One paced sampler for all that runs: what was read last answers, and what is told is never older than a period.

A round reads a few cgroups at a time, with pauses between them; ``pace`` says when. A single object is read at the moment of the
question. What only a backend can tell is asked of at most a few at once. A backend that hangs costs its own containers' numbers, not the
answer, and so does a file that the kernel does not let go of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from bridge import log
from bridge.core.cpu_rates import CpuRates
from bridge.core.looks import Found, Look, Target
from bridge.core.pace import Pace, SamplerSettings
from bridge.errors import BridgeError
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_reader import CgroupReader
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.held_threads import unless_held
from bridge.host.net_stats import NetworkStats
from bridge.host.process_counts import ProcessCounts

_logger = log.get("core.sampler")
_AT_A_TIME = 32
"""Targets in one hop to a worker thread: some 3 ms of work."""
_FEW = 16
"""So many backends may be asked whenever somebody asks for lists, at most once a second."""
_ROUND = 0.8
"""Share of a period after which a backend is asked again where there are many."""
_ANSWER_SECONDS = 3.0
"""How long an answer waits for backends; what they say later is in the next one."""
_QUIET_SECONDS = 0.8
"""Who asks after so long, but within a period, asks again: crictl stats fails as a whole when one number is as old as a second before."""
_DETAILS_PERIODS = 2
"""So long after a question for details rounds bring them. They cost thrice the rest: who asks once a minute has them read then."""
_HELD_SECONDS = 3.0
"""After which a look at files counts as held by the kernel; some 3 ms are usual."""
_MOST_HELD = 4
"""With so many threads held no more files are read until one comes back."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The last look at a target, at ``taken`` of the event loop's clock; each part has its own Unix time, and is None when not found.

    ``details`` and ``processes`` were read if ``detailed``, which costs more: only while somebody asks for them, and only of cgroups
    whose target is ``detailed``.
    """

    taken: float = float("-inf")
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    network: NetworkStats | None = None
    details: CgroupDetails | None = None
    detailed: bool = False
    processes: ProcessCounts | None = None


class Sampler:
    """``targets`` says what runs now. ``samples`` works without ``run``, which keeps what it answers with young."""

    def __init__(self, targets: Callable[[], Sequence[Target]], settings: SamplerSettings, reader: CgroupReader | None = None) -> None:
        self._targets = targets
        self._settings = settings
        self._reader = reader or CgroupReader()
        self._reading = anyio.Lock()
        self._at_once = anyio.CapacityLimiter(settings.at_once)
        self._asking: dict[str, anyio.Event] = {}
        self._rates = CpuRates()
        self._samples: dict[str, Sample] = {}
        self._opened: dict[str, str] = {}
        self._held: dict[str, Look] = {}
        self._files, self._backends = Pace(settings), Pace(settings)
        self._details_asked = self._last_asked = float("-inf")
        self._told: dict[str, float] = {}
        self._told_before: Mapping[str, float] = {}

    @property
    def open_files(self) -> int:
        """Files of cgroups that are open now."""
        return self._reader.open_files

    async def samples(self, targets: Iterable[Target], *, fresh: bool = False, detailed: bool = False) -> Mapping[str, Sample]:
        """What is known of ``targets`` by id: no older than a period, or read now if ``fresh``. One that nothing is known of is missing."""
        wanted, now = list(targets), anyio.current_time()
        oldest, again = now, list[Target]()
        if not fresh:
            oldest = now - self._settings.period
            self._details_asked = now if detailed else self._details_asked
            self._files.asked()
            self._backends.asked()
            again = self._as_told_before(wanted, now)
        stale = [each for each in wanted if not self._serves(each, oldest, detailed)]
        for some, since in ((stale, oldest), (again, now)):
            if some:
                await self._read(some, since, detailed, keep_open=not fresh)
        with anyio.move_on_after(_ANSWER_SECONDS):
            await self._ask(stale, oldest)
            await self._ask(again, now)
        found = {each.ident: self._samples[each.ident] for each in wanted if self._serves(each, now - self._settings.period, False)}
        if not fresh:
            self._told.update((ident, sample.taken) for ident, sample in found.items())
        if self._files.asleep:
            await self.forget_the_ended()
        return found

    def _as_told_before(self, wanted: Sequence[Target], now: float) -> list[Target]:
        """Those of which nothing newer is known than what was told to who asked shortly before; of many backends none.

        Usually there are none: a question brings a round, which is over before the next one unless the node is busy.
        """
        passed, self._last_asked = now - self._last_asked, now
        if passed >= _QUIET_SECONDS:
            self._told_before = self._told if passed < self._settings.period else {}
            self._told = {}
        found = [each for each in wanted if (sample := self._samples.get(each.ident)) and sample.taken == self._told_before.get(each.ident)]
        if sum(each.backend is not None for each in found) > _FEW:
            return [each for each in found if each.backend is None]
        return found

    async def run(self) -> None:
        """Keep the samples young for ever; closes its files at the end."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._backends.keep, self._backends_round, anyio.lowlevel.checkpoint, name="statistics of backends")
                await self._files.keep(self._files_round, self._close)
        finally:
            with anyio.CancelScope(shield=True):  # a hop to a thread, which can't be called off, may be under way
                await self._close()

    def _serves(self, target: Target, oldest: float, detailed: bool) -> bool:
        sample = self._samples.get(target.ident)
        if sample is None or sample.taken < oldest:
            return False
        return sample.detailed or not detailed or target.cgroup is None or not target.detailed

    async def _files_round(self) -> None:
        began = anyio.current_time()
        detailed = began - self._details_asked <= _DETAILS_PERIODS * self._settings.period
        targets = self._targets()
        for start in range(0, len(targets), _AT_A_TIME):
            at = anyio.current_time()
            await self._read(targets[start : start + _AT_A_TIME], began, detailed)
            await anyio.sleep(anyio.current_time() - at)  # leaves half of the time to others
        await self.forget_the_ended()

    async def forget(self, ident: str) -> None:
        """It has ended: close its files."""
        self._samples.pop(ident, None)
        cgroup = self._opened.pop(ident, None)
        if cgroup is not None:
            async with self._reading:
                self._reader.drop(cgroup)

    async def forget_the_ended(self) -> None:
        """Forget all that does not run any more."""
        targets = self._targets()
        alive = {each.ident for each in targets}
        kept: tuple[dict[str, Any], ...] = (self._samples, self._opened, self._told)
        for each in kept:
            for ident in each.keys() - alive:
                del each[ident]
        self._rates.forget(alive.__contains__)
        async with self._reading:
            self._reader.keep_only({each.cgroup for each in targets if each.cgroup is not None})

    async def _close(self) -> None:
        async with self._reading:
            self._reader.close()

    async def _read(self, targets: Sequence[Target], oldest: float, detailed: bool, *, keep_open: bool = True) -> None:
        """Look at the files of those of ``targets`` that no look since ``oldest`` serves."""
        async with self._reading:
            left = deque(each for each in targets if self._unread(each, oldest, detailed))
            while left and len(self._held) < _MOST_HELD:
                some, now = [left.popleft() for _ in range(min(_AT_A_TIME, len(left)))], anyio.current_time()
                if keep_open:
                    self._opened.update({each.ident: each.cgroup for each in some if each.cgroup is not None})
                count = self._settings.count_processes
                look = Look(some, self._reader, detailed=detailed, keep_open=keep_open, count_processes=count)
                try:
                    await unless_held(look.run, _HELD_SECONDS, partial(self._let_go, look))
                finally:
                    for target, found in look.seen:
                        self._keep_found(target, found, now, detailed)
                    left.extendleft(reversed(() if look.over else self._leave(look)))

    def _leave(self, look: Look) -> Sequence[Target]:
        """Go on with another reader, without what its thread stands at. Returns what it would have looked at next."""
        target, rest = look.give_up()
        _logger.warning("no statistics of %s: the kernel has held a thread that reads them for %g s", target.ident[:13], _HELD_SECONDS)
        self._held[target.ident] = look
        self._reader = look.reader.successor()
        return rest

    def _let_go(self, look: Look) -> None:
        for ident in [ident for ident, each in self._held.items() if each is look]:
            _logger.warning("statistics of %s can be read again", ident[:13])
            del self._held[ident]
            self._reader.inherit(look.reader)

    def _unread(self, target: Target, oldest: float, detailed: bool) -> bool:
        has_files = target.cgroup is not None or target.netns is not None
        return has_files and target.ident not in self._held and not self._serves(target, oldest, detailed)

    async def _backends_round(self) -> None:
        """Each once a period. In the rounds between, for who asks twice, only where they are few: a question may be a process."""
        targets, now = [each for each in self._targets() if each.backend is not None], anyio.current_time()
        await self._ask(targets, now if len(targets) <= _FEW else now - _ROUND * self._settings.period)

    async def _ask(self, targets: Iterable[Target], oldest: float) -> None:
        left = [each for each in targets if each.backend is not None and not self._serves(each, oldest, False)]
        if not left:
            return
        async with anyio.create_task_group() as group:
            for each in left:
                group.start_soon(self._ask_one, each, name=f"ask for statistics of {each.ident}")

    async def _ask_one(self, target: Target) -> None:
        """Ask its backend, or wait for who asks it already."""
        under_way = self._asking.get(target.ident)
        if under_way is not None:
            await under_way.wait()
            return
        assert target.backend is not None
        done = self._asking[target.ident] = anyio.Event()
        try:
            async with self._at_once:
                with anyio.move_on_after(_ANSWER_SECONDS) as scope:
                    look = await target.backend.stats()
            if scope.cancelled_caught:
                _logger.warning("no statistics of %s: its backend said nothing for %g s", target.ident[:13], _ANSWER_SECONDS)
            elif look is not None:
                self._keep(target, Sample(anyio.current_time(), look))
        except BridgeError as exc:
            _logger.warning("no statistics of %s: %s", target.ident[:13], exc)
        finally:
            del self._asking[target.ident]
            done.set()

    def _keep_found(self, target: Target, found: Found, now: float, detailed: bool) -> None:
        self._keep(target, Sample(now, found.cgroup, None, found.network, found.details, detailed, found.processes))

    def _keep(self, target: Target, sample: Sample) -> None:
        """Remember a look, with the rate that follows from it and the one before."""
        look, before = sample.cgroup, self._samples.get(target.ident)
        if look is not None and look.cpu_ns is not None:
            if before is not None and before.cgroup is not None:  # a backend may reckon what it tells, and a counter never goes back
                look = replace(look, cpu_ns=max(look.cpu_ns, before.cgroup.cpu_ns or 0))
            rate = self._rates.observe(target.ident, look.at_ns, look.cpu_ns or 0, began_ns=target.began_ns)
            sample = replace(sample, cgroup=look, nano_cores=rate)
        self._samples[target.ident] = sample
