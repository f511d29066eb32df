"""Says, while it lasts, who holds the event loop up: every request waits for that, and no code in the loop can tell.

A thread looks whether the loop still beats. It is the one part of the server that runs while a plugin blocks.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback

import anyio
from anyio.to_thread import run_sync

from bridge import log

_logger = log.get("stalls")
_FRAMES = 6


async def watch(*, patience: float = 5.0) -> None:
    """Log an error with the stack, once a stall, when this event loop has not gone on for ``patience`` seconds. Runs until cancelled."""
    heart, over = _Heart(threading.get_ident(), patience), threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: run_sync(heart.listen, over, abandon_on_cancel=True), name="listen to the event loop")
        try:
            while True:
                heart.beat()
                await anyio.sleep(patience / 2)
        finally:
            over.set()


class _Heart:
    def __init__(self, thread: int, patience: float) -> None:
        self._thread = thread
        self._patience = patience
        self._last = time.monotonic()
        self._told = False

    def beat(self) -> None:
        """The loop goes on."""
        now = time.monotonic()
        if self._told:
            _logger.error("the event loop goes on after %.1f s", now - self._last)
        self._last, self._told = now, False

    def listen(self, over: threading.Event) -> None:
        """Blocks until ``over``."""
        while not over.wait(self._patience):
            still = time.monotonic() - self._last
            if still > self._patience and not self._told:
                self._told = True
                _logger.error("the event loop has been held up for %.1f s, by: %s", still, self._where())

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread)
        found = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        return " > ".join(f"{each.name} ({each.filename}:{each.lineno})" for each in found)
