"""A request that gets an answer other than its upgrade."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import InvalidRequest


class Refused(InvalidRequest):
    """To be answered with HTTP ``status``, the message and ``headers``, then to be hung up on."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
