"""One call into a plugin's backend: a deadline, and no other errors than those of bridge.errors. Part of ``isolation``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from bridge import log
from bridge.aio import describe
from bridge.errors import BridgeError, PluginFailed, Unsupported
from bridge.ports.host import RuntimeTimeouts

_logger = log.get("isolation")
MARGIN = 40.0
"""Seconds above the backend's own deadlines: its errors say more than ours. A monitor that is being replaced takes up to 30."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Watches the calls of one handler; ``timeouts`` are the handler's own."""

    handler: str
    plugin: str
    timeouts: RuntimeTimeouts

    async def call(self, what: Any, name: str, seconds: float | None, *args: Any, **named: Any) -> Any:
        """``what.name(…)`` within ``seconds`` and the margin, None for no deadline. Raises BridgeError classes only."""
        method = self.method(what, name)
        scope = anyio.CancelScope(deadline=float("inf") if seconds is None else anyio.current_time() + seconds + MARGIN)
        try:
            with scope:
                return await method(*args, **named)
        except BridgeError:
            raise
        except Exception as exc:
            _logger.exception("handler %s: plugin %s failed in %s", self.handler, self.plugin, name)
            raise self.failed(name, f"raised {describe(exc)}") from exc
        raise self.failed(name, f"did not end within {(seconds or 0) + MARGIN:g} s and was cancelled")

    def method(self, what: Any, name: str) -> Callable[..., Awaitable[Any]]:
        """The method. Raises Unsupported when the plugin has none: it may be older than the interface."""
        try:
            found: Callable[..., Awaitable[Any]] = getattr(what, name)
        except AttributeError as exc:
            raise Unsupported(f"handler {self.handler!r}: plugin {self.plugin!r} has no {name}(): it may be too old") from exc
        return found

    def read(self, what: Any, name: str, *default: object) -> Any:
        """The property ``name``, or ``default`` of a plugin that has none. Raises PluginFailed."""
        try:
            return getattr(what, name, *default)
        except BridgeError:
            raise
        except Exception as exc:
            raise self.failed(name, f"raised {describe(exc)}") from exc

    def failed(self, name: str, why: str) -> PluginFailed:
        """The error for a plugin that broke the contract of ``name``."""
        return PluginFailed(f"handler {self.handler!r}: plugin {self.plugin!r}: {name} {why}")


class Guarded:
    """Stands for ``inner``."""

    __slots__ = ("_guard", "_inner")

    def __init__(self, guard: Guard, inner: Any) -> None:
        self._guard = guard
        self._inner = inner

    async def _call(self, name: str, seconds: float | None, *args: Any, **named: Any) -> Any:
        return await self._guard.call(self._inner, name, seconds, *args, **named)
