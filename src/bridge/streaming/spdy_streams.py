"""From SPDY streams to what a session serves: the channels of a remote command, or the pairs of a port-forward.

Kubernetes names a stream's purpose in its headers: ``streamType`` (error, stdin, stdout, stderr, resize), for port-forward
``streamType`` (data, error), ``port`` and ``requestID``. Source: k8s.io/apimachinery httpstream, k8s.io/kubelet portforward.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio

from bridge import log
from bridge.streaming.channels import ConnectionLost, ForwardedConnection, RemoteCommand
from bridge.streaming.spdy_channel import SpdyChannel
from bridge.streaming.spdy_frames import Reset
from bridge.streaming.spdy_session import SpdySession

_logger = log.get("streaming.spdy")
OPENING_SECONDS = 30.0
"""How long a client may take to open all streams of a command, or the other half of a forwarded connection."""


async def remote_command(session: SpdySession, wanted: frozenset[str], *, structured: bool) -> RemoteCommand:
    """Wait until the client has opened every stream of ``wanted`` and the error stream. Raises ConnectionLost, also when it takes too long.

    A stream that is not wanted, or there already, is reset.
    """
    found: dict[str, SpdyChannel] = {}
    expected = wanted | {"error"}
    with anyio.move_on_after(OPENING_SECONDS):
        while expected - found.keys():
            channel = await session.accept()
            kind = channel.headers.get("streamtype", "").lower()
            if kind in expected and kind not in found:
                found[kind] = channel
            else:
                channel.reset(Reset.REFUSED_STREAM)
    if missing := expected - found.keys():
        raise ConnectionLost(f"the client opened no {' and no '.join(sorted(missing))} stream within {OPENING_SECONDS:g} s")
    streams = {name: found.get(name) for name in ("stdin", "stdout", "stderr", "resize")}
    return RemoteCommand(error=found["error"], structured=structured, **streams)


@dataclass(slots=True)
class _Half:
    """The half of a forwarded connection that came first."""

    channel: SpdyChannel
    since: float = field(default_factory=anyio.current_time)


class ForwardedStreams:
    """The connections of a port-forward (bridge.streaming.channels.PortForwardStreams)."""

    def __init__(self, session: SpdySession) -> None:
        self._session = session
        self._halves: dict[str, _Half] = {}

    async def __aiter__(self) -> AsyncIterator[ForwardedConnection]:
        """Each pair once it is whole. A stream that makes no sense, and a half that stays alone, are reset."""
        while True:
            while self._session.has_opened:
                if (pair := self._paired(await self._session.accept())) is not None:
                    yield pair
            self._drop_old()
            with anyio.move_on_after(OPENING_SECONDS):
                await self._session.opened()

    def _paired(self, channel: SpdyChannel) -> ForwardedConnection | None:
        kind, port = channel.headers.get("streamtype", "").lower(), _port(channel.headers.get("port", ""))
        if kind not in ("data", "error") or port is None:
            channel.reset(Reset.PROTOCOL_ERROR)
            return None
        request = self._request(channel, kind)
        half = self._halves.pop(request, None)
        if half is None:
            self._halves[request] = _Half(channel)
            return None
        other = half.channel
        if other.headers.get("streamtype", "").lower() == kind or _port(other.headers.get("port", "")) != port:
            channel.reset(Reset.PROTOCOL_ERROR)
            other.reset(Reset.PROTOCOL_ERROR)
            return None
        data, error = (channel, other) if kind == "data" else (other, channel)
        return ForwardedConnection(port, data, error)

    @staticmethod
    def _request(channel: SpdyChannel, kind: str) -> str:
        """The pair's name. Old clients send none: theirs opens the error stream right before the data stream."""
        given = channel.headers.get("requestid", "")
        return given or f"#{channel.number if kind == 'error' else channel.number - 2}"

    def _drop_old(self) -> None:
        old = anyio.current_time() - OPENING_SECONDS
        for request in [name for name, half in self._halves.items() if half.since <= old]:
            _logger.info("half of a forwarded connection stayed alone and is given up")
            self._halves.pop(request).channel.reset(Reset.CANCEL)


def _port(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        return None
    number = int(text)
    return number if 1 <= number <= 65535 else None
