"""How fast CPU time is spent now, from two looks at a counter. Pure, for one task at a time.

A kubelet and a person with ``crictl stats`` may ask at any distance. Two looks milliseconds apart would give noise, so a rate
covers at least a second; until then the last one stands. The first look at what has just begun is compared with its beginning; one
that is older has no rate until the second look, for what it did since it began says nothing of now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_LEAST_NS = 1_000_000_000
_NEW_NS = 60 * _LEAST_NS


@dataclass(frozen=True, slots=True)
class _Sample:
    at_ns: int
    cpu_ns: int
    rate: int | None


class CpuRates:
    """Rates in nanocores (billionths of one CPU) by object id."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}

    def observe(self, ident: str, at_ns: int, cpu_ns: int, *, began_ns: int = 0) -> int | None:
        """The rate once the counter of ``ident`` is ``cpu_ns`` at ``at_ns`` (Unix time); None while nothing can be said.

        The counter was zero at ``began_ns``; 0 when that is not known.
        """
        before = self._samples.get(ident)
        if before is None and began_ns and at_ns - began_ns <= _NEW_NS:
            before = _Sample(began_ns, 0, None)
        if before is None or cpu_ns < before.cpu_ns:
            self._samples[ident] = _Sample(at_ns, cpu_ns, None)
            return None
        passed = at_ns - before.at_ns
        if passed < _LEAST_NS:
            return before.rate
        rate = (cpu_ns - before.cpu_ns) * _LEAST_NS // passed
        self._samples[ident] = _Sample(at_ns, cpu_ns, rate)
        return rate

    def forget(self, alive: Callable[[str], bool]) -> None:
        """Drop what is kept of ids that are not ``alive`` any more."""
        for ident in [ident for ident in self._samples if not alive(ident)]:
            del self._samples[ident]
