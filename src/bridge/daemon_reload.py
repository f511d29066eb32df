"""What of a configuration that was read again takes effect at once, what needs a restart, and when a retired handler is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config import Config
from bridge.core.entities import Sandbox
from bridge.core.store import Store
from bridge.errors import LimitExceeded
from bridge.handlers import HandlerRegistry

LIVE = frozenset({("runtime", "handlers"), ("runtime", "default_handler")})
"""Keys that SIGHUP puts in force."""


def with_handlers_of(config: Config, fresh: Config) -> Config:
    """``config`` with what SIGHUP takes from ``fresh``."""
    taken = {key: getattr(fresh.runtime, key) for _, key in LIVE}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=taken)})


def needing_restart(config: Config, fresh: Config) -> list[str]:
    """The keys, dotted, that differ and that only a restart puts in force."""
    return [".".join(key) for key in _differing(config.model_dump(), fresh.model_dump(), ()) if key not in LIVE]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Sections are looked into; what is in a key is one value."""
    for name in new:
        if old.get(name) != new[name]:
            if at:
                yield (*at, name)
            else:
                yield from _differing(old[name], new[name], (name,))


async def close_retired(store: Store, handlers: HandlerRegistry) -> None:
    """Close each retired handler when its last pod is removed, for ever."""
    while True:
        close_unused(store, handlers)
        try:
            async with store.changes.subscribe() as changes:
                async for change in changes:
                    if change.after is None and isinstance(change.before, Sandbox):
                        close_unused(store, handlers)
        except LimitExceeded:
            continue  # so many pods went at once that some were missed: look at what there is


def close_unused(store: Store, handlers: HandlerRegistry) -> None:
    """Close the retired handlers that no pod needs."""
    if handlers.retired:
        handlers.close_unused([(each.handler, each.opening) for each in store.sandboxes.values() if each.opening is not None])
