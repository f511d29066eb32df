"""One client's HTTP/2 connection, on ``grpclib.protocol``: its settings, and the calls that run on it.

grpclib leaves h2's limit of 100 streams a connection: a kubelet's 300 long calls made Version wait 2.6 s. Here the limit
is part of the first SETTINGS frame. Only public names of grpclib and h2 are used; tests/unit/api guards them.
"""

from __future__ import annotations

from asyncio import BaseTransport, Transport
from collections.abc import Callable
from typing import Any, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import UnknownFrameReceived
from h2.settings import SettingCodes, Settings

from bridge.api.calls import Call

MAX_STREAMS = 4096  # calls in flight on one connection
_MAX_HEADERS = 65536  # bytes of headers in one request
_WINDOW = 4 << 20  # bytes a peer may send ahead, for a stream and for the connection

_H2_CONFIG = H2Configuration(
    client_side=False,
    header_encoding="ascii",
    # grpclib's choice too: the peer is a gRPC library on the same host, and checks cost more than the call
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)
_CONFIG = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW).__for_server__()

Start = Callable[[Call, Callable[[], None]], None]


class _Wire(H2Connection):
    """h2 with a shorter memory: its 65 536 closed streams cost 8 MB on a connection that a kubelet keeps for weeks."""

    MAX_CLOSED_STREAMS = 1024


class _Calls(AbstractHandler):
    """The calls of one connection; what h2 says of a stream reaches its call here."""

    def __init__(self, start: Start, max_message: int) -> None:
        self._start = start
        self._max_message = max_message
        self._calls: dict[Stream, Call] = {}
        self.wire: H2Connection | None = None

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        """A request has begun."""
        assert self.wire is not None
        call = self._calls[stream] = Call(stream, self.wire, headers, self._max_message)

        def release() -> None:
            self._calls.pop(stream, None)
            release_stream()

        self._start(call, release)

    def cancel(self, stream: Stream) -> None:
        """The peer has reset the stream."""
        call = self._calls.get(stream)
        if call is not None:
            call.cancel(None)

    def close(self) -> None:
        """The connection is lost."""
        for call in tuple(self._calls.values()):
            call.cancel(None)


class ServerProtocol(H2Protocol):
    """A client's connection. ``start(call, release)`` is called for each request; ``release`` must follow its end.

    It is in the set ``alive`` from the connection's beginning to its end.
    """

    def __init__(self, start: Start, alive: set[ServerProtocol], *, max_message: int) -> None:
        self._calls = _Calls(start, max_message)
        self._alive = alive
        super().__init__(self._calls, _CONFIG, _H2_CONFIG)

    def connection_made(self, transport: BaseTransport) -> None:
        """As grpclib's, but with all settings in the first frame, in force before the peer can open a stream."""
        wire = _Wire(config=self.h2_config)
        initial = {
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADERS,
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
        }
        wire.local_settings = Settings(client=False, initial_values=initial)
        wire.initiate_connection()
        wire.increment_flow_control_window(_WINDOW - 65535)
        self._calls.wire = wire
        self.connection = Connection(wire, cast("Transport", transport), config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = EventsProcessor(self._calls, self.connection)
        # A frame of an unknown type must be ignored (RFC 9113 §4.1); grpclib would drop the connection.
        self.processor.processors[UnknownFrameReceived] = lambda _event: None
        self._alive.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel what still runs for this peer."""
        super().connection_lost(exc)
        self._alive.discard(self)

    def close(self) -> None:
        """Flush and close; running calls are cancelled."""
        self.processor.close("the server closes")
