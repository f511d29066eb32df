"""Container logs as the kubelet reads them: ``TIME STREAM TAG TEXT``, where the tag P says that the line goes on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP]) (.*)", re.DOTALL)


class Line(NamedTuple):
    """One line of a log file. ``whole``: a newline was written after ``text``."""

    time: str
    stream: str
    whole: bool
    text: bytes


def parse(data: bytes) -> list[Line]:
    """The lines of a log's bytes; one that is still being written is left out. Raises AssertionError for a line of another form."""
    lines = []
    for raw in data.split(b"\n")[:-1]:
        match = _LINE.fullmatch(raw)
        assert match, f"not a line of a container log: {raw[:200]!r}"
        lines.append(Line(match[1].decode(), match[2].decode(), match[3] == b"F", match[4]))
    return lines


def read(path: Path) -> list[Line]:
    """The lines of a file; none when it is not there."""
    return parse(path.read_bytes()) if path.exists() else []


def written(lines: Iterable[Line], stream: str = "stdout") -> bytes:
    """What the container wrote to ``stream``."""
    return b"".join(line.text + b"\n" * line.whole for line in lines if line.stream == stream)
