"""logfmt logging with request, pod and container context.

``context(request=..., pod=...)`` binds fields for the current task and its children; every record carries them. The
format is one line a record, ``ts level logger msg key=value …``, values quoted only where needed, so that grep works.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})
_fields: ContextVar[Mapping[str, str]] = ContextVar("bridge_log_fields", default=_NONE)
_QUOTE = set(' "=\\')


def get(name: str) -> logging.Logger:
    """Logger ``bridge.<name>``."""
    return logging.getLogger(f"bridge.{name}" if not name.startswith("bridge") else name)


@contextlib.contextmanager
def context(**fields: str) -> Iterator[None]:
    """Bind ``fields`` to every record logged by this task and its children until the block ends."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def current() -> Mapping[str, str]:
    """The fields bound in this task."""
    return _fields.get()


def quote(value: str) -> str:
    """``value`` as logfmt: bare when it can be, else double-quoted with backslash escapes.

    Control characters are always escaped: names and messages come from containers, and a terminal obeys what it is shown.
    """
    if value and value.isprintable() and not (_QUOTE & set(value)):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    return f'"{escaped}"'


class LogfmtFormatter(logging.Formatter):
    """One logfmt line a record; a traceback follows as one escaped field ``exc``."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        parts = [f"ts={stamp}", f"level={record.levelname.lower()}", f"logger={record.name}", f"msg={quote(record.getMessage())}"]
        parts += [f"{key}={quote(value)}" for key, value in _fields.get().items()]
        if record.exc_info:
            parts.append(f"exc={quote(self.formatException(record.exc_info))}")
        return " ".join(parts)


def setup(level: str = "info") -> None:
    """Send ``bridge.*`` to stderr at ``level`` (debug, info, warning, error). Called once by a process's entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    root = logging.getLogger("bridge")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
