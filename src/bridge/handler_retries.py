"""A disabled handler is tried again by itself: after pauses that grow, and at once when its program has changed.

A probe that took too long on a busy node, or a binary that was being upgraded, would disable its handler until somebody sends SIGHUP.
What can't work at all is tried no oftener than every five minutes, which costs a look at a file or one trial.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import BridgeError
from bridge.handler_settings import HandlerSettings
from bridge.handlers import HandlerRegistry
from bridge.plugins import Plugins

_logger = log.get("handlers")
_LOOK_SECONDS = 5.0
"""How often the programs of disabled handlers are looked at."""
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0

Identity = tuple[int, int, int, int] | None
"""Device, inode, size and time of change of a program; None where there is none."""


@dataclass(slots=True)
class _Tries:
    settings: HandlerSettings
    identity: Identity
    pause: float
    at: float


async def keep_trying(registry: HandlerRegistry, plugins: Plugins) -> None:
    """Try again what is disabled, for ever. Never raises for a handler."""
    tries: dict[str, _Tries] = {}
    while True:
        await anyio.sleep(_LOOK_SECONDS)
        due = await _due(registry, plugins, tries)
        if not due:
            continue
        await registry.retry(due)
        for name in due:
            known = tries[name]
            known.pause, known.at = min(2 * known.pause, _LONGEST_PAUSE), anyio.current_time() + known.pause
            if name in registry.disabled:
                _logger.info("handler %s is still disabled, the next try is in %.0f s", name, known.pause)


async def _due(registry: HandlerRegistry, plugins: Plugins, tries: dict[str, _Tries]) -> list[str]:
    """The names of those whose time has come; ``tries`` is brought into agreement with what is disabled now."""
    now, disabled = anyio.current_time(), registry.disabled
    for name in tries.keys() - disabled.keys():
        del tries[name]
    for name, settings in disabled.items():
        identity = await run_sync(_identity, _program(settings, plugins))
        known = tries.get(name)
        if known is None or known.settings != settings or known.identity != identity:
            tries[name] = _Tries(settings, identity, _FIRST_PAUSE, now)
    registry.next_tries = {name: each.at for name, each in tries.items()}
    return [name for name in disabled if tries[name].at <= now]


def _program(settings: HandlerSettings, plugins: Plugins) -> str:
    """What its option ``path`` says; "" where its plugin has no such option, or can't be used."""
    try:
        options = plugins.options(plugins.runtime(settings.plugin), settings.options)
    except BridgeError:
        return ""
    return str(getattr(options, "path", None) or "")


def _identity(program: str) -> Identity:
    """Blocks."""
    found = shutil.which(program) if program else None
    try:
        status = os.stat(found or program)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
