"""Asking the monitor over its replacement: a new one is there within a second, unless it can't be started at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from bridge.errors import MonitorGone, NotFound
from bridge.ports.host import Monitor

T = TypeVar("T")
MONITOR_RETURN_SECONDS = 30.0
"""How long a question outlives the loss of the monitor."""
PRESENT_SECONDS = 5.0
"""How long something that can't be asked twice waits for a monitor that is being replaced."""
_POLL_SECONDS = 0.1


async def lasting(monitor: Callable[[], Monitor], ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
    """Ask the monitor something that may be asked twice, again if it is replaced meanwhile.

    Raises MonitorGone when it stays away for ``patience`` seconds.
    """
    deadline = anyio.current_time() + patience
    while True:
        try:
            live = monitor()
            deadline = anyio.current_time() + patience
            return await ask(live)
        except MonitorGone:
            if anyio.current_time() >= deadline:
                raise
            await anyio.sleep(_POLL_SECONDS)


async def known(task_id: str, monitor: Monitor) -> None:
    """Ask whether the monitor has this task, before something that can't be asked twice. Raises NotFound."""
    if not await monitor.tasks(task_id):
        raise NotFound(f"the monitor does not know {task_id}")


async def present(monitor: Callable[[], Monitor]) -> Monitor:
    """The live monitor, for what can't be asked twice: one that is being replaced is waited for.

    Raises MonitorGone when there is none after PRESENT_SECONDS.
    """
    return await lasting(monitor, _itself, patience=PRESENT_SECONDS)


async def _itself(monitor: Monitor) -> Monitor:
    return monitor
