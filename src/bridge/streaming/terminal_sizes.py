"""The resize channel: JSON objects ``{"Width":80,"Height":24}`` one after another, cut anywhere. Sans I/O."""

from __future__ import annotations

import json

from bridge.core.stream_sessions import Size

_LONGEST = 1024
_MOST = 65535  # struct winsize holds 16 bits
_decoder = json.JSONDecoder()


class TerminalSizes:
    """Cuts what comes into sizes. After something that is none it takes no more: the client's own terminal keeps its last size."""

    def __init__(self) -> None:
        self._text = ""
        self._broken = False

    def feed(self, data: bytes) -> Size | None:
        """The last size that ``data`` completes, for those before it are over; None when it completes none."""
        if self._broken:
            return None
        self._text = (self._text + data.decode("utf-8", "replace")).lstrip()
        found: Size | None = None
        while self._text.startswith("{"):
            try:
                value, end = _decoder.raw_decode(self._text)
            except ValueError:
                break
            self._text = self._text[end:].lstrip()
            found = _size(value) or found
        self._broken = len(self._text) > _LONGEST or (self._text != "" and not self._text.startswith("{"))
        return found


def _size(value: dict[str, object]) -> Size | None:
    fields = {key.lower(): field for key, field in value.items()}
    width, height = fields.get("width"), fields.get("height")
    if type(width) is int and type(height) is int and 0 < width <= _MOST and 0 < height <= _MOST:
        return width, height
    return None
