"""What a longer-running verb tells the person who watches: headings, facts, quoted output. Colour on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import IO

_BOLD, _DIM, _GREEN, _RED, _CYAN = "1", "2", "32", "31", "36"


class Narration:
    """Writes to ``stream``; with colour when it is a terminal and NO_COLOR is unset (no-color.org)."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colour = self._stream.isatty() and not os.environ.get("NO_COLOR")

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._write(f"\n{self._paint(text, _BOLD)}")

    def fact(self, text: str) -> None:
        """One thing that was done or found."""
        self._write(f"  {text}")

    def quote(self, who: str, lines: Iterable[str]) -> None:
        """What somebody else said, such as a container's log."""
        for line in lines:
            self._write(f"  {self._paint(who, _CYAN)} {self._paint('│', _DIM)} {line}")

    def verdict(self, good: bool, text: str) -> None:
        """How it ended."""
        self._write(f"  {self._paint('✓', _GREEN) if good else self._paint('✗', _RED)} {text}")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
