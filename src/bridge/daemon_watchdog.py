"""Signs of life for the service manager: given only while this server could serve a request.

The event loop must turn, or nothing here runs, and a worker thread must answer, as every file and every runtime's start needs one. A
server that does neither is killed and started again by its manager, which no container notices.
"""

from __future__ import annotations

import faulthandler
import sys

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.host.service_manager import ServiceManager

_logger = log.get("watchdog")


async def beat(manager: ServiceManager) -> None:
    """Tell it WATCHDOG=1 three times in each of its periods, for ever; at once nothing when it doesn't want to know."""
    if not manager.watchdog:
        return
    pause = manager.watchdog / 3
    faulthandler.enable(sys.__stderr__ or 2)  # it ends a server that hangs by SIGABRT: the journal gets the stacks
    while True:
        with anyio.move_on_after(manager.watchdog) as patience:
            await run_sync(manager.announce, "WATCHDOG=1", abandon_on_cancel=True)
        if patience.cancelled_caught:
            _logger.error("no worker thread answers within %g s: the service manager gets no sign of life", manager.watchdog)
        await anyio.sleep(pause)
