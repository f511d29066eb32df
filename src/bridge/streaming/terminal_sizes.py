"""The resize channel: JSON objects ``{"Width":80,"Height":24}`` one after another, cut anywhere. Sans I/O."""

from __future__ import annotations

import json

from bridge.core.stream_sessions import Size

_LONGEST = 1024
_MOST = 65535  # struct winsize holds 16 bits


class TerminalSizes:
    """Cuts what comes into sizes. After something that is none it takes no more: the client's own terminal keeps its last size."""

    def __init__(self) -> None:
        self._text = ""
        self._broken = False

    def feed(self, data: bytes) -> Size | None:
        """The size that ``data`` completes, the last of several. None: it completes none, or one that is none."""
        if self._broken:
            return None
        text = self._text + data.decode("utf-8", "replace")
        end = text.rfind("}") + 1
        found = None
        if end:
            try:
                found = _size(json.loads(text[max(text.rfind("{", 0, end), end - _LONGEST, 0) : end]))
            except ValueError:
                self._broken = True
        self._text = text[end:].strip()
        self._broken |= len(self._text) > _LONGEST or self._text[:1] not in ("", "{")
        if self._broken:
            self._text = ""
        return found


def _size(value: object) -> Size | None:
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004 - what JSON's own refusals are
    fields = {key.lower(): field for key, field in value.items()}
    width, height = fields.get("width"), fields.get("height")
    if type(width) is int and type(height) is int and 0 < width <= _MOST and 0 < height <= _MOST:
        return width, height
    return None
