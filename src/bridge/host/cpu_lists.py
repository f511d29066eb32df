"""Lists of CPUs or memory nodes as the kernel writes and reads them: "0-3,7". Pure. Source: cpuset(7), "List format".

Standard library only.
"""

from __future__ import annotations

import re

MOST = 65535
"""No kernel numbers CPUs higher; a wider range in a request would only cost memory."""

_PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def parse(text: str) -> frozenset[int]:
    """The numbers in ``text``; none for an empty list. Raises ValueError saying what is wrong."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is neither a number nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{part!r} ends before it begins")
        if last > MOST:
            raise ValueError(f"{last} is above {MOST}")
        found.update(range(first, last + 1))
    return frozenset(found)
