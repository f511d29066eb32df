"""How the server leaves: at a signal, amid its start too, and at the latest when the time of a stop is over."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator

import anyio

from bridge import log

_logger = log.get("daemon")
_NAMED = 20


def leave_after(seconds: float) -> None:
    """End the process then, come what may: a thread that the kernel holds can't be cancelled, and a crash at any moment is safe."""

    def leave() -> None:
        names = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(loop))[:_NAMED])
        _logger.error("work does not end and is left to the next start: %s", names)
        os._exit(1)

    loop = asyncio.get_running_loop()
    last = threading.Timer(seconds, leave)
    last.daemon = True
    last.start()


async def stop_early(
    signals: AsyncIterator[signal.Signals], starting: anyio.CancelScope, whole: anyio.CancelScope, patience: float
) -> None:
    """At SIGTERM or SIGINT cancel ``whole``, the server that is not ready yet, and leave within ``patience`` seconds.

    What was begun is undone, or left to the next start. Ends when ``starting`` is cancelled; later signals are somebody else's.
    """
    with starting:
        async for number in signals:
            if number != signal.SIGHUP:
                _logger.info("%s amid the start: leaving; containers go on", signal.Signals(number).name)
                leave_after(patience)
                whole.cancel()
                return
