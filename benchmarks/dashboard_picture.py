"""Draws docs/grafana/cri-bridge.svg: the dashboard's panels with what a Prometheus answers to their queries, without Grafana.

``python -m benchmarks.dashboard_picture http://127.0.0.1:9090 SECONDS > docs/grafana/cri-bridge.svg`` asks for the last SECONDS of a
Prometheus that scrapes a server each second while something keeps that busy. Queries with no data at all are named on stderr.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana" / "cri-bridge.json"
VARIABLES = {"$__rate_interval": "10s", "$instance": ".+", "$job": ".+"}
"""As Grafana fills them in with everything chosen; its rate interval is at least four scrapes."""
Line = tuple[str, Sequence[tuple[float, float]]]
"""A legend, and points of Unix time and value."""
_UNIT, _ROW, _PANEL = 50, 30, 230
"""Width of one of the 24 columns, heights of a row's title and of a panel, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 88
_COLOURS = ("#1f60c4", "#d4351c", "#e08400", "#2f8a3c", "#7b3fa0", "#008f95", "#c2417c", "#6b7a1e", "#8c5a2b", "#555e6b")
_SCALES = {
    "s": ((1, " s"), (1e-3, " ms"), (1e-6, " µs")),
    "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")),
    "Bps": ((1e6, " MB/s"), (1e3, " kB/s")),
}
_PLAIN = {"reqps": "/s", "cps": "/s"}


def panels() -> list[dict[str, Any]]:
    """Those of the dashboard, rows among them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def filled(query: str) -> str:
    """``query`` with the dashboard's variables replaced."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def answered(prometheus: str, query: str, seconds: float) -> list[tuple[Mapping[str, str], list[tuple[float, float]]]]:
    """The series of ``query`` over the last ``seconds``: labels and points. Raises urllib's HTTPError for one that is not understood."""
    end = time.time()
    asked = urlencode({"query": filled(query), "start": end - seconds, "end": end, "step": _step(seconds)})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{asked}", timeout=30) as answer:
        result = json.load(answer)["data"]["result"]
    return [(each["metric"], [(at, float(value)) for at, value in each["values"] if math.isfinite(float(value))]) for each in result]


def _step(seconds: float) -> float:
    return max(1.0, seconds / 240)


def lines(panel: Mapping[str, Any], prometheus: str, seconds: float) -> Iterator[Line]:
    """What a panel shows."""
    for target in panel["targets"]:
        found = answered(prometheus, target["expr"], seconds)
        if not found:
            print(f"no data: {panel['title']}: {filled(target['expr'])}", file=sys.stderr)
        for labels, points in found:
            words = re.sub(r"\{\{(\w+)\}\}", lambda name, labels=labels: labels.get(name[1], ""), target["legendFormat"])  # type: ignore[misc]
            if points:
                yield " ".join(words.split()) or "none", points


def drawn(prometheus: str, seconds: float) -> str:
    """The dashboard as SVG."""
    parts: list[str] = []
    top = below = 0
    line_of = -1
    for panel in panels():
        place = panel["gridPos"]
        if panel["type"] == "row":
            top, line_of = below, -1
            parts.append(f'<text x="8" y="{top + 21}" font-size="15" font-weight="bold">{escape(panel["title"])}</text>')
            below = top + _ROW
            continue
        if place["y"] != line_of:
            top, line_of, below = below, place["y"], below + _PANEL
        parts.append(f'<g transform="translate({place["x"] * _UNIT},{top})">')
        parts += [*_panel(panel, sorted(lines(panel, prometheus, seconds), key=_most), place["w"] * _UNIT, seconds), "</g>"]
    size = f'width="{24 * _UNIT}" height="{below}" viewBox="0 0 {24 * _UNIT} {below}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10" fill="#333">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def _most(line: Line) -> float:
    return -max(value for _, value in line[1])


def _panel(panel: Mapping[str, Any], shown: Sequence[Line], width: int, seconds: float) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    top = _rounded(defaults.get("max") or max((-_most(line) for line in shown), default=0.0))
    wide, high, end = width - _LEFT - _RIGHT, _PANEL - _TOP - _BOTTOM, time.time()
    yield f'<rect x="3" y="3" width="{width - 6}" height="{_PANEL - 6}" rx="3" fill="none" stroke="#ccc"/>'
    yield f'<text x="12" y="21" font-size="12" font-weight="bold">{escape(panel["title"])}</text>'
    for part in (0.0, 0.5, 1.0):
        y = _TOP + high * (1 - part)
        yield f'<path d="M{_LEFT} {y:.1f}h{wide}" stroke="#e4e4e4"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{escape(_words(part * top, top, defaults["unit"]))}</text>'
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        ago = f"-{(1 - part) * seconds:.0f} s" if part < 1 else "now"
        yield f'<text x="{_LEFT + part * wide:.1f}" y="{_TOP + high + 14}" text-anchor="{anchor}" fill="#777">{ago}</text>'
    for number, (_, points) in enumerate(shown):
        path, before = "", -math.inf
        for at, value in points:
            joined = at - before <= 1.5 * _step(seconds)  # else it had no value in between
            x, y = _LEFT + wide * (1 - (end - at) / seconds), _TOP + high * (1 - min(value / top, 1))
            path, before = f"{path}{'L' if joined else 'M'}{x:.1f} {y:.1f}{'' if joined else 'h1'}", at
        yield f'<path d="{path}" fill="none" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="1.5"/>'
    yield from _legend([words for words, _ in shown], width)


def _legend(shown: Sequence[str], width: int) -> Iterator[str]:
    """Names below the picture, in as many lines as there is room for."""
    x, y = 14.0, _PANEL - _BOTTOM + 32.0
    for number, words in enumerate(shown):
        long = 24 + 6.1 * len(words)
        if x > 14 and x + long > width - 8:
            x, y = 14.0, y + 14
        if y > _PANEL - 8:
            yield f'<text x="{width - 12}" y="{_PANEL - 9}" text-anchor="end" fill="#777">… {len(shown) - number} more</text>'
            return
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<path d="M{x:.1f} {y - 3.5:.1f}h12" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{x + 16:.1f}" y="{y:.1f}">{escape(words)}</text>'
        x += long


def _rounded(top: float) -> float:
    """The next of 1, 2, 5, 10…"""
    if top <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= top * 0.999)


def _words(value: float, top: float, unit: str) -> str:
    for scale, name in _SCALES.get(unit, ()):
        if top >= scale:
            return f"{value / scale:g}{name}"
    return f"{value:g}{_PLAIN.get(unit, '')}"


if __name__ == "__main__":
    sys.stdout.write(drawn(sys.argv[1].rstrip("/"), float(sys.argv[2])))
