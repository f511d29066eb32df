"""One-time tokens: what makes the URL of a stream a secret between the kubelet and this server.

A token is 256 random bits, good for one connection within a minute. A request that comes with a wrong, a used or an expired one
is told the same. Tokens are kept by their digest, so that looking one up takes a time that tells nothing of the others.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.core.stream_requests import StreamRequest
from bridge.errors import LimitExceeded

LIFETIME_SECONDS = 60.0
MAX_PENDING = 1000
_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Pending:
    token: bytes
    request: StreamRequest
    until: float


class Tokens:
    """The requests that wait for their client, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pending: dict[bytes, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def issue(self, request: StreamRequest) -> str:
        """A new token for ``request``. Raises LimitExceeded while MAX_PENDING of the last minute wait."""
        self._drop_expired()
        if len(self._pending) >= MAX_PENDING:
            raise LimitExceeded(f"{MAX_PENDING} streams wait for their clients already; the oldest gives way within {LIFETIME_SECONDS:g} s")
        token = secrets.token_urlsafe(_BYTES)
        key = token.encode()
        self._pending[_digest(key)] = _Pending(key, request, self._clock() + LIFETIME_SECONDS)
        return token

    def redeem(self, token: str) -> StreamRequest | None:
        """What the token was issued for, once; None for any token that is not good, whatever the reason."""
        self._drop_expired()
        given = token.encode()
        found = self._pending.pop(_digest(given), None)
        if found is None or not hmac.compare_digest(found.token, given):
            return None
        return found.request

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._pending:
            oldest = next(iter(self._pending))
            if self._pending[oldest].until > now:
                return
            del self._pending[oldest]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
