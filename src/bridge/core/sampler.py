"""One paced sampler for all that runs: what was read last answers, and what is told is never older than a period.

A round reads a few cgroups at a time, with pauses between them; ``pace`` says when. A single object is read at the moment of the
question. What only a backend can tell is asked of at most a few at once, and a backend that hangs costs its own containers' numbers,
not the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

from bridge import log
from bridge.core.cpu_rates import CpuRates
from bridge.core.pace import Pace, SamplerSettings
from bridge.errors import BridgeError
from bridge.host import net_stats, process_counts
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_reader import CgroupReader
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.namespaces import in_own_thread
from bridge.host.net_stats import NetworkStats
from bridge.host.process_counts import ProcessCounts
from bridge.ports.runtime import ContainerHandle

_logger = log.get("core.sampler")
_AT_A_TIME = 32
"""Targets in one hop to a worker thread: some 3 ms of work."""
_FEW = 16
"""So many backends may be asked whenever somebody asks for lists, at most once a second."""
_ROUND = 0.8
"""Share of a period after which a backend is asked again where there are many."""
_ANSWER_SECONDS = 3.0
"""How long an answer waits for backends; what they say later is in the next one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A container that runs, or a pod. ``backend`` is asked where there is no ``cgroup``; ``began_ns`` is when it started, 0 unknown.

    ``pid`` is a container's first process, 0 of what has none here: a pod, or one whose cgroup is a sandbox's.
    """

    ident: str
    cgroup: str | None = None
    backend: ContainerHandle | None = None
    netns: Path | None = None
    began_ns: int = 0
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The last look at a target, at ``taken`` of the event loop's clock; each part has its own Unix time, and is None when not found.

    ``details`` and ``processes`` were read if ``detailed``, which costs more: only while somebody asks for them, and only of cgroups.
    """

    taken: float = float("-inf")
    cgroup: CgroupStats | None = None
    nano_cores: int | None = None
    network: NetworkStats | None = None
    details: CgroupDetails | None = None
    detailed: bool = False
    processes: ProcessCounts | None = None


@dataclass(slots=True)
class _Looks:
    """What one hop brings."""

    cgroups: dict[str, tuple[CgroupStats, CgroupDetails | None]]
    processes: Mapping[str, ProcessCounts | None]
    networks: Mapping[str, NetworkStats]


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
        self._files, self._backends = Pace(settings), Pace(settings)
        self._details_asked = float("-inf")

    @property
    def open_files(self) -> int:
        """Files of cgroups that are open now."""
        return self._reader.open_files

    async def samples(self, targets: Iterable[Target], *, fresh: bool = False, detailed: bool = False) -> Mapping[str, Sample]:
        """What is known of ``targets`` by id: no older than a period, or read now if ``fresh``. One that nothing is known of is missing."""
        wanted, now = list(targets), anyio.current_time()
        oldest = now if fresh else now - self._settings.period
        if not fresh:
            self._details_asked = now if detailed else self._details_asked
            self._files.asked()
            self._backends.asked()
        stale = [each for each in wanted if not self._serves(each, oldest, detailed)]
        if stale:
            await self._read(stale, oldest, detailed, keep_open=not fresh)
            with anyio.move_on_after(_ANSWER_SECONDS):
                await self._ask(stale, oldest)
        found = {each.ident: self._samples[each.ident] for each in wanted if self._serves(each, now - self._settings.period, False)}
        if self._files.asleep:
            await self.forget_the_ended()
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
        return sample.detailed or not detailed or target.cgroup is None

    async def _files_round(self) -> None:
        began = anyio.current_time()
        detailed = began - self._details_asked <= self._settings.idle
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
        for ident in [ident for ident in self._samples if ident not in alive]:
            del self._samples[ident]
        for ident in [ident for ident in self._opened if ident not in alive]:
            del self._opened[ident]
        self._rates.forget(alive.__contains__)
        async with self._reading:
            self._reader.keep_only({each.cgroup for each in targets if each.cgroup is not None})

    async def _close(self) -> None:
        async with self._reading:
            self._reader.close()

    async def _read(self, targets: Sequence[Target], oldest: float, detailed: bool, *, keep_open: bool = True) -> None:
        """Look at the files of those of ``targets`` that no look since ``oldest`` serves."""
        async with self._reading:
            left = [
                each for each in targets if (each.cgroup is not None or each.netns is not None) and not self._serves(each, oldest, detailed)
            ]
            for start in range(0, len(left), _AT_A_TIME):
                some, now = left[start : start + _AT_A_TIME], anyio.current_time()
                own_thread = any(each.netns is not None for each in some)
                if keep_open:
                    self._opened.update({each.ident: each.cgroup for each in some if each.cgroup is not None})
                work = partial(self._look, some, detailed, keep_open)
                looks = await (in_own_thread(work) if own_thread else run_sync(work))
                for each in some:
                    look, details = looks.cgroups.get(each.ident, (None, None))
                    network, processes = looks.networks.get(each.ident), looks.processes.get(each.ident)
                    self._keep(each, Sample(now, look, None, network, details, detailed, processes))

    def _look(self, targets: Sequence[Target], detailed: bool, keep_open: bool) -> _Looks:
        """In a worker thread; with network namespaces in one that ends with it."""
        found: dict[str, tuple[CgroupStats, CgroupDetails | None]] = {}
        processes: dict[str, ProcessCounts | None] = {}
        for each in targets:
            if each.cgroup is None:
                continue
            try:
                look, details = self._reader.read(each.cgroup, detailed=detailed, keep_open=keep_open)
            except BridgeError as exc:
                _logger.warning("no statistics of %s: %s", each.ident[:13], exc)
                continue
            if look.cpu_ns is not None or look.memory is not None:  # else it ended meanwhile, or has none yet
                found[each.ident] = (look, details)
                if detailed and each.pid and self._settings.count_processes:
                    processes[each.ident] = process_counts.read(each.cgroup, each.pid, on=self._reader.hierarchies)
        return _Looks(
            found, processes, net_stats.read_in_this_thread({each.ident: each.netns for each in targets if each.netns is not None})
        )

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

    def _keep(self, target: Target, sample: Sample) -> None:
        """Remember a look, with the rate that follows from it and the one before."""
        look, before = sample.cgroup, self._samples.get(target.ident)
        if look is not None and look.cpu_ns is not None:
            if before is not None and before.cgroup is not None:  # a backend may reckon what it tells, and a counter never goes back
                look = replace(look, cpu_ns=max(look.cpu_ns, before.cgroup.cpu_ns or 0))
            rate = self._rates.observe(target.ident, look.at_ns, look.cpu_ns or 0, began_ns=target.began_ns)
            sample = replace(sample, cgroup=look, nano_cores=rate)
        self._samples[target.ident] = sample
