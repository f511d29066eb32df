"""The pace of a transfer: an idle deadline, a floor below which bytes are a trickle and not progress, and when to come back."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Awaitable, Callable

import anyio

from bridge.errors import ImagePullFailed, RegistryUnavailable

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Busy(RegistryUnavailable):
    """A registry that answered 429 or 5xx; ``wait`` is what its Retry-After says, in seconds, or None."""

    def __init__(self, message: str, wait: float | None) -> None:
        super().__init__(message)
        self.wait = wait


class Untrusted(RegistryUnavailable):
    """A host that speaks TLS, with a certificate that nobody we trust has signed: trying again, or without TLS, is no answer."""


class Absent(ImagePullFailed):
    """A registry that answered 404: it has no such thing."""


def retry_after(header: str | None, now: float | None = None) -> float | None:
    """Seconds by a Retry-After header (RFC 9110 §10.2.3: a number or a date); None when there is none, or none that makes sense."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def pause(failure: Exception, tries: int, patience: float) -> float | None:
    """Seconds until the next try after ``tries`` failed ones; None when the registry wants more than ``patience``.

    Twice as long each time, with jitter, so that the nodes of a cluster don't come back together.
    """
    own: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tries) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
    asked = failure.wait if isinstance(failure, Busy) else None
    if asked is None:
        return own
    return None if asked > patience else asked + own


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
