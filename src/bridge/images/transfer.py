"""The pace of a transfer: an idle deadline, and a floor below which bytes are a trickle and not progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


class Pace:
    """Watches one transfer. Only time spent waiting for the network counts, not time in which we were busy ourselves."""

    def __init__(self, idle_seconds: float, floor_bytes: int, floor_seconds: float) -> None:
        self._idle = idle_seconds
        self._floor = floor_bytes
        self._window = floor_seconds
        self._waited = 0.0
        self._came = 0

    async def wait(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What ``read`` gives. Raises TimeoutError when it takes too long, or when the last window brought too little."""
        start = anyio.current_time()
        with anyio.fail_after(self._idle):
            data = await read()
        self._waited += anyio.current_time() - start
        self._came += len(data)
        if self._waited >= self._window:
            if data and self._came < self._floor * self._waited:
                raise TimeoutError
            self._waited, self._came = 0.0, 0
        return data
