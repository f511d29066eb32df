"""A pod's trace as a picture: one line a span, a bar where it began and how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bridge._proto.bridge.admin import v1 as admin

_GAP_NS = 50_000_000
"""Requests further apart than this (ns) are drawn with a scale of their own: nothing happened in between."""


def draw(spans: Sequence[admin.Span], *, width: int = 100) -> Iterator[str]:
    """The lines of the picture, ``width`` columns wide. Spans come in the order in which they began."""
    for group in _groups(spans):
        begin = group[0].start
        total = max(span.start + span.duration for span in group) - begin
        label = max(len(_name(span)) for span in group) + 2
        bar = max(10, width - label - 12)
        yield f"{'':{label}}{'ms':>8}  0{_ms(total):>{bar - 1}}"
        for span in group:
            yield f"{_name(span):<{label}}{_ms(span.duration):>8}  {_bar(span, begin, total, bar)}".rstrip()


def _groups(spans: Sequence[admin.Span]) -> Iterator[list[admin.Span]]:
    """Requests that followed each other closely, together."""
    group: list[admin.Span] = []
    end = 0
    for span in spans:
        if group and span.depth == 0 and span.start > end + _GAP_NS:
            yield group
            group = []
        group.append(span)
        end = max(end, span.start + span.duration)
    if group:
        yield group


def _name(span: admin.Span) -> str:
    return "  " * span.depth + span.name


def _ms(duration: int) -> str:
    return f"{duration / 1e6:.1f}"


def _bar(span: admin.Span, begin: int, total: int, width: int) -> str:
    """Eighths of a column, so that short spans still differ; never empty."""
    scale = width * 8 / max(total, 1)
    start = int((span.start - begin) * scale)
    length = max(1, round(span.duration * scale))
    first, rest = divmod(start, 8)
    whole, part = divmod(length, 8)
    body = "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return " " * min(first, width - 1) + body[: max(1, width - first + (1 if rest else 0))]
