"""From samples to the tables of docs/performance.md: percentiles, ratios with their noise, Markdown and raw JSON."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Samples = Mapping[str, Sequence[float]]
"""Measurements by server name."""

_RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0–1) of ``values`` lie, interpolated."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of median(ours) / median(theirs): what the ratio could as well have been by noise alone."""
    source = random.Random(1)  # the same table from the same samples
    ratios = sorted(
        statistics.median(source.choices(ours, k=len(ours))) / statistics.median(source.choices(theirs, k=len(theirs)))
        for _ in range(_RESAMPLES)
    )
    return ratios[int(_RESAMPLES * 0.025)], ratios[int(_RESAMPLES * 0.975)]


@dataclass
class Table:
    """One table of the report. ``rows`` maps a row's label to its samples by server; ``notes`` are printed below it.

    ``shares`` are the percentiles (0–1) that each server has a column for; none: one column with the only value.
    """

    title: str
    unit: str
    servers: Sequence[str]
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shares: Sequence[float] = (0.5, 0.95)

    def add(self, label: str, server: str, value: float) -> None:
        """Record one measurement."""
        self.rows.setdefault(label, {}).setdefault(server, []).append(value)

    def markdown(self) -> str:
        """The table; the ratio is the last server's median over the first's, with its 95 % interval."""
        pair = len(self.servers) == 2
        columns = [f"{server} p{share * 100:.0f}" for server in self.servers for share in self.shares] or list(self.servers)
        heads = ["", *columns, *(["ratio of p50 (95 %)" if self.shares else "ratio"] if pair else [])]
        lines = [f"### {self.title} ({self.unit})", "", _line(heads), _line(["---", *("---:" for _ in heads[1:])])]
        for label, samples in self.rows.items():
            cells = [label]
            for server in self.servers:
                values = samples.get(server, [])
                cells += [_number(percentile(values, share)) if values else "–" for share in self.shares or (0.5,)]
            lines.append(_line([*cells, *([_ratio(samples, self.servers)] if pair else [])]))
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])

    def raw(self) -> dict[str, Any]:
        """Everything that was measured, for JSON."""
        return {"title": self.title, "unit": self.unit, "servers": list(self.servers), "rows": self.rows, "notes": self.notes}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(samples: Samples, servers: Sequence[str]) -> str:
    theirs, ours = (samples.get(server, []) for server in servers)
    if not theirs or not ours:
        return "–"
    if len(ours) < 5 or len(theirs) < 5:
        return f"{statistics.median(ours) / statistics.median(theirs):.2f}"
    low, high = ratio_interval(ours, theirs)
    return f"{statistics.median(ours) / statistics.median(theirs):.2f} ({low:.2f}–{high:.2f})"
