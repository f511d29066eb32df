"""Printing: tables with colour where a person reads, plain columns in a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

Cell = str | tuple[str, str]
"""A cell's text, or (text, rich style)."""


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, to: IO[str] | None = None) -> None:
    """Print ``rows`` below ``headers``: with colour on a terminal, else as columns that cut and awk can split by two spaces."""
    stream = to or sys.stdout
    if stream.isatty():
        _rich_table(headers, rows, stream)
        return
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headers), *texts]) for column in range(len(headers))]
    for row in [list(headers), *texts]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=stream)


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print ``value`` as indented JSON; paths and the like as text."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def size(count: int) -> str:
    """A number of bytes as people write it: 512 B, 4.2 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], stream: IO[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) if isinstance(cell, str) else Text(cell[0], style=cell[1]) for cell in row))
    Console(file=stream, highlight=False).print(drawn)
