"""Draws docs/grafana/cri-bridge.svg: the dashboard's panels over real scrapes, without Grafana.

``python -m benchmarks.dashboard_picture SOCKET SECONDS > docs/grafana/cri-bridge.svg`` scrapes a server's ``metrics.socket`` once a second
while something else keeps the server busy. It knows no more of PromQL than the dashboard uses.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana" / "cri-bridge.json"
Labels = tuple[tuple[str, str], ...]
Scrape = tuple[float, Mapping[str, Mapping[Labels, float]]]
Series = dict[Labels, list[tuple[float, float]]]
_QUERY = re.compile(
    r"(?:histogram_quantile\((?P<q>[\d.]+), )?(?:sum by \((?P<by>[^)]*)\) \()?(?P<rate>rate\()?(?P<name>\w+)(?:\{(?P<match>[^}]*)\})?"
)
_WIDTH, _HEIGHT, _COLUMNS = 400, 190, 3
_COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00")


def scraped(path: str) -> str:
    """One page."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")[2].decode()


def parsed(at: float, page: str) -> Scrape:
    """The samples of a page, by name and labels."""
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return at, found


def evaluated(query: str, scrapes: Sequence[Scrape]) -> Series:
    """What the query gives over the scrapes; a rate is taken between two that follow one another."""
    asked = _QUERY.match(query)
    assert asked is not None, query
    by = asked["by"].split(", ") if asked["by"] else None
    series: Series = defaultdict(list)
    for (before, old), (at, new) in itertools.pairwise(scrapes):
        groups: dict[Labels, float] = defaultdict(float)
        for labels, value in new.get(asked["name"], {}).items():
            if _matches(dict(labels), asked["match"] or ""):
                taken = (value - old.get(asked["name"], {}).get(labels, 0.0)) / (at - before) if asked["rate"] else value
                groups[tuple(pair for pair in labels if by is None or pair[0] in by)] += taken
        for labels, value in _quantiles(float(asked["q"]), groups) if asked["q"] else iter(groups.items()):
            series[labels].append((at, value / 1e6 if query.endswith("/ 1e6") else value))
    return series


def _matches(labels: Mapping[str, str], wanted: str) -> bool:
    return all((labels.get(name, "") == value) == (sign == "=") for name, sign, value in re.findall(r'(\w+)(!?=)"([^"]*)"', wanted))


def _quantiles(part: float, buckets: Mapping[Labels, float]) -> Iterator[tuple[Labels, float]]:
    histograms: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        histograms[tuple(pair for pair in labels if pair[0] != "le")].append((float(dict(labels)["le"]), count))
    for labels, counts in histograms.items():
        counts.sort()
        wanted, low, below = part * counts[-1][1], 0.0, 0.0
        for high, count in counts:
            if wanted > 0 and count >= wanted:
                yield labels, low if high == float("inf") else low + (high - low) * (wanted - below) / (count - below)
                break
            low, below = high, count


def drawn(scrapes: Sequence[Scrape]) -> str:
    """The dashboard as SVG."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    rows = -(-len(panels) // _COLUMNS)
    size = f'width="{_WIDTH * _COLUMNS}" height="{_HEIGHT * rows}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="9">', f'<rect {size} fill="#fff"/>']
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % _COLUMNS * _WIDTH},{number // _COLUMNS * _HEIGHT})">')
        parts += [*_panel(panel, scrapes), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Mapping[str, object], scrapes: Sequence[Scrape]) -> Iterator[str]:
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    targets = panel["targets"]
    assert isinstance(targets, list)
    for target in targets:
        for labels, points in evaluated(target["expr"], scrapes).items():
            words = re.sub(r"\{\{(\w+)\}\}", lambda found, named=dict(labels): named.get(found[1], ""), target["legendFormat"])  # type: ignore[misc]
            lines.append((words.strip() or "none", points))
    lines.sort(key=lambda line: -max(value for _, value in line[1]))
    top = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    first, last = scrapes[0][0], scrapes[-1][0]
    yield f'<rect x="4" y="4" width="{_WIDTH - 8}" height="{_HEIGHT - 8}" fill="none" stroke="#ccc"/>'
    yield f'<text x="12" y="19" font-size="12" font-weight="bold">{escape(str(panel["title"]))}</text><text x="12" y="32">{top:.3g}</text>'
    for number, (words, points) in enumerate(lines[:8]):
        colour = _COLOURS[number]
        path = " ".join(f"{12 + 260 * (at - first) / (last - first):.1f},{175 - 135 * value / top:.1f}" for at, value in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<text x="280" y="{44 + 15 * number}" fill="{colour}">{escape(words[:24])}</text>'


if __name__ == "__main__":
    pages = []
    for _ in range(int(sys.argv[2])):
        pages.append(parsed(time.monotonic(), scraped(sys.argv[1])))
        time.sleep(1)
    sys.stdout.write(drawn(pages))
