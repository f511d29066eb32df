"""What SPDY and WebSocket have in common once a connection is up: channels of bytes, grouped by what the client asked for.

A transport (spdy, websocket) makes these objects; remotecommand and portforward serve them without knowing which it was.
Back-pressure goes end to end: ``write`` returns only when the client's side has room, ``read`` asks the client for more only
when it is called, so neither side can make this server's memory grow. Losing the connection ends every ``read`` and
``write`` with ConnectionLost; the session that serves them is cancelled with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import Unavailable


class ConnectionLost(Unavailable):
    """The client's connection is gone, or it broke the protocol. Nobody is left to be told anything."""


class Channel(Protocol):
    """One stream of bytes with the client, each direction closed by itself."""

    @property
    def has_news(self) -> bool:
        """Whether ``read`` has something at once, be it the end."""
        ...

    async def read(self) -> bytes:
        """What came since the last call, at most a few frames; b"" once the client has closed its half. Raises ConnectionLost."""
        ...

    async def write(self, data: bytes) -> None:
        """Send ``data``; returns when it is within the channel's bound. Dropped after a reset by the client. Raises ConnectionLost."""
        ...

    async def close(self) -> None:
        """Close our half, after what was written. Idempotent; never raises for a lost connection."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """The channels of one exec or attach, as far as the client opened them.

    ``structured`` (protocol v4 and later): the error channel carries a metav1.Status as JSON, also for success; else a line of
    text for failures only. ``resize`` carries JSON objects ``{"Width":…,"Height":…}``.
    """

    error: Channel
    structured: bool
    stdin: Channel | None = None
    stdout: Channel | None = None
    stderr: Channel | None = None
    resize: Channel | None = None


@dataclass(frozen=True, slots=True)
class ForwardedConnection:
    """One connection of a port-forward: its bytes, and the channel for what went wrong with it (text, then closed)."""

    port: int
    data: Channel
    error: Channel


class PortForwardStreams(Protocol):
    """The forwarded connections of one session, in the order in which the client opens them; ends with the connection."""

    def __aiter__(self) -> AsyncIterator[ForwardedConnection]: ...
