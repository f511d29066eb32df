"""One SPDY/3.1 connection as a state machine without I/O: bytes in, events and bytes out.

Kubernetes' clients (kubectl, crictl) speak SPDY by the library spdystream, which knows no flow control: it never sends
WINDOW_UPDATE and sends as much data as the socket takes. So windows for what we send count only once the peer has shown that
it keeps them (by SETTINGS or a WINDOW_UPDATE); until then the socket alone slows us down. What we receive is bounded by the
reader above, who stops reading the socket while much of it is unused, and by WINDOW_UPDATE for peers that heed it.

Source: SPDY Protocol Draft 3.1. Either side may be ours: ``client=True`` is for tests and for tunnels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.streaming import spdy_frames as wire
from bridge.streaming.outbox import Outbox
from bridge.streaming.spdy_events import DataReceived, Event, GoneAway, PingAnswered, StreamAnswered, StreamOpened, StreamReset, WindowGrew
from bridge.streaming.spdy_frames import Control, Data, FrameParser, HeaderCodec, Kind, Reset, SpdyError

INITIAL_WINDOW = 65536
_STEP = INITIAL_WINDOW // 2
"""What must be used before the peer is told: small steps would answer each keystroke with two frames."""
_MAX_WINDOW = 0x7FFFFFFF
_SETTINGS_INITIAL_WINDOW = 7
_GOAWAY_OK, _GOAWAY_PROTOCOL_ERROR = 0, 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a peer may make us hold. ``control`` and ``headers`` in bytes, the latter decompressed."""

    streams: int = 1024
    control: int = 64 << 10
    headers: int = 64 << 10


@dataclass(slots=True)
class _Stream:
    """``answered``: SYN_REPLY was exchanged. ``window``: bytes we may send; ``to_return``: bytes used of which the peer was not told."""

    answered: bool = False
    local_open: bool = True
    remote_open: bool = True
    window: int = INITIAL_WINDOW
    to_return: int = 0


@dataclass(slots=True)
class _Flow:
    """Windows of the connection as a whole. ``kept``: the peer has shown that it keeps windows."""

    kept: bool = False
    window: int = INITIAL_WINDOW
    initial: int = INITIAL_WINDOW
    to_return: int = 0


@dataclass(slots=True)
class SpdyMachine:
    """See the module docstring. ``receive`` returns events; ``to_send`` takes what is to be written to the peer."""

    client: bool = False
    limits: Limits = field(default_factory=Limits)
    _out: Outbox = field(default_factory=Outbox)
    _streams: dict[int, _Stream] = field(default_factory=dict)
    _flow: _Flow = field(default_factory=_Flow)
    _last_seen: int = 0
    _next_own: int = 0
    _next_ping: int = 0
    _going: bool = False
    _parser: FrameParser = field(init=False)
    _headers: HeaderCodec = field(init=False)

    def __post_init__(self) -> None:
        self._parser = FrameParser(self.limits.control)
        self._headers = HeaderCodec(self.limits.headers)
        self._next_own = self._next_ping = 1 if self.client else 2

    def receive(self, data: bytes) -> list[Event]:
        """The events that ``data`` brings. Raises SpdyError, after which only ``to_send`` (a GOAWAY) is of use."""
        return [event for events in self.frames(data) for event in events]

    def frames(self, data: bytes) -> Iterator[Sequence[Event]]:
        """The same, frame by frame, so that others can have their turn between two; to be taken to the end."""
        try:
            for frame in self._parser.feed(data):
                events: list[Event] = []
                if isinstance(frame, Data):
                    self._data(frame, events)
                else:
                    self._control(frame, events)
                yield events
        except SpdyError:
            self.go_away(_GOAWAY_PROTOCOL_ERROR)
            raise

    def to_send(self) -> bytes:
        """Everything to be written to the peer now; it is the caller's from then on."""
        return self._out.take()

    @property
    def pending(self) -> int:
        """Bytes that ``to_send`` would give."""
        return self._out.size

    def _data(self, frame: Data, events: list[Event]) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None or not stream.remote_open:
            if frame.data and not self._was_ours_or_theirs(frame.stream):
                self._send_reset(frame.stream, Reset.INVALID_STREAM)
            self._return_window(len(frame.data))  # of a stream that we gave up: it still counts for the connection
            return
        if frame.end:
            stream.remote_open = False
        if frame.data or frame.end:
            events.append(DataReceived(frame.stream, frame.data, frame.end))
        self._forget_if_over(frame.stream)

    def _was_ours_or_theirs(self, stream: int) -> bool:
        theirs = stream % 2 != (1 if self.client else 0)
        return stream <= self._last_seen if theirs else stream < self._next_own

    def _control(self, frame: Control, events: list[Event]) -> None:
        match frame.kind:
            case Kind.SYN_STREAM:
                self._syn_stream(frame, events)
            case Kind.SYN_REPLY | Kind.HEADERS:
                self._answer(frame, events)
            case Kind.RST_STREAM:
                stream, status = wire.two_words(frame.payload, "RST_STREAM")
                if self._streams.pop(stream, None) is not None:
                    events.append(StreamReset(stream, status))
            case Kind.SETTINGS:
                self._settings(wire.settings(frame.payload), events)
            case Kind.PING:
                self._ping(frame.payload, events)
            case Kind.GOAWAY:
                events.append(GoneAway(*wire.two_words(frame.payload, "GOAWAY")))
            case Kind.WINDOW_UPDATE:
                self._window_update(*wire.two_words(frame.payload, "WINDOW_UPDATE"), events)
            case _:
                pass  # section 2.2.1: a type that one doesn't know is ignored

    def _syn_stream(self, frame: Control, events: list[Event]) -> None:
        if len(frame.payload) < 10:
            raise SpdyError("a SYN_STREAM frame that is too short")
        stream = int.from_bytes(frame.payload[:4], "big") & wire.MAX_STREAM_ID
        headers = self._headers.decode(frame.payload[10:])  # in any case: the zlib stream must stay in step
        if stream == 0 or stream % 2 == (1 if self.client else 0):
            raise SpdyError(f"a new stream {stream}, whose number is not the peer's to give")
        if stream <= self._last_seen:
            raise SpdyError(f"a new stream {stream} after {self._last_seen}")
        self._last_seen = stream
        if self._going or len(self._streams) >= self.limits.streams:
            self._send_reset(stream, Reset.REFUSED_STREAM)
            return
        end = bool(frame.flags & wire.FLAG_FIN)
        one_way = bool(frame.flags & wire.FLAG_UNIDIRECTIONAL)
        self._streams[stream] = _Stream(local_open=not one_way, remote_open=not end, window=self._flow.initial)
        events.append(StreamOpened(stream, headers, end))

    def _answer(self, frame: Control, events: list[Event]) -> None:
        if len(frame.payload) < 4:
            raise SpdyError("a SYN_REPLY or HEADERS frame that is too short")
        number = int.from_bytes(frame.payload[:4], "big") & wire.MAX_STREAM_ID
        headers = self._headers.decode(frame.payload[4:])
        stream = self._streams.get(number)
        if stream is None or not stream.remote_open:
            return
        if frame.kind == Kind.SYN_REPLY:
            if stream.answered or number % 2 != (1 if self.client else 0):
                raise SpdyError(f"a SYN_REPLY for stream {number}, which needs none")
            stream.answered = True
        end = bool(frame.flags & wire.FLAG_FIN)
        stream.remote_open = not end
        events.append(StreamAnswered(number, headers, end))
        self._forget_if_over(number)

    def _settings(self, values: Mapping[int, int], events: list[Event]) -> None:
        initial = values.get(_SETTINGS_INITIAL_WINDOW)
        if initial is None:
            return
        if initial > _MAX_WINDOW:
            raise SpdyError(f"an initial window of {initial} bytes")
        self._flow.kept = True
        for stream in self._streams.values():
            stream.window += initial - self._flow.initial
        self._flow.initial = initial
        events.append(WindowGrew(0))

    def _ping(self, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise SpdyError(f"a PING frame of {len(payload)} bytes")
        number = int.from_bytes(payload, "big")
        if number % 2 == (1 if self.client else 0):
            events.append(PingAnswered(number))
        else:
            self._out.add(wire.control(Kind.PING, payload))

    def _window_update(self, number: int, delta: int, events: list[Event]) -> None:
        delta &= _MAX_WINDOW
        self._flow.kept = True
        if number == 0:
            if self._flow.window + delta > _MAX_WINDOW:
                raise SpdyError("a window of more than 2 GiB")
            self._flow.window += delta
        elif (stream := self._streams.get(number)) is not None:
            if stream.window + delta > _MAX_WINDOW:
                self.reset(number, Reset.FLOW_CONTROL_ERROR)
                events.append(StreamReset(number, Reset.FLOW_CONTROL_ERROR))
                return
            stream.window += delta
        events.append(WindowGrew(number))

    # What we do

    def open(self, headers: Sequence[tuple[str, str]], *, end: bool = False) -> int:
        """Open a stream of our own; returns its number."""
        number, self._next_own = self._next_own, self._next_own + 2
        self._streams[number] = _Stream(local_open=not end, window=self._flow.initial)
        payload = wire.words(number, 0) + bytes(2) + self._headers.encode(headers)
        self._out.add(wire.control(Kind.SYN_STREAM, payload, wire.FLAG_FIN if end else 0))
        return number

    def reply(self, number: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Accept a stream that the peer opened."""
        stream = self._streams.get(number)
        if stream is not None and not stream.answered:
            stream.answered = True
            self._out.add(wire.control(Kind.SYN_REPLY, wire.words(number) + self._headers.encode(headers)))

    def room(self, number: int) -> int:
        """How many bytes may be sent on the stream now; 0 also for one that is closed."""
        stream = self._streams.get(number)
        if stream is None or not stream.local_open:
            return 0
        return max(0, min(stream.window, self._flow.window)) if self._flow.kept else wire.MAX_FRAME

    def is_open(self, number: int) -> bool:
        """Whether our half of the stream is open."""
        stream = self._streams.get(number)
        return stream is not None and stream.local_open

    def send(self, number: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send ``data``, which must fit into ``room``; ``end`` closes our half. On a stream that is closed it is dropped."""
        stream = self._streams.get(number)
        if stream is None or not stream.local_open:
            return
        if len(data) > self.room(number):
            raise ValueError(f"{len(data)} bytes for a window of {self.room(number)}")
        stream.window -= len(data)
        self._flow.window -= len(data)
        if data or end:
            self._out.add(wire.data_head(number, len(data), end=end))
            self._out.add(data)
        if end:
            stream.local_open = False
            self._forget_if_over(number)

    def consumed(self, number: int, amount: int) -> None:
        """``amount`` bytes of DataReceived have been used: a peer that heeds windows may send as much again."""
        stream = self._streams.get(number)
        if stream is not None and stream.remote_open:
            stream.to_return += amount
            if stream.to_return >= _STEP:
                self._out.add(wire.control(Kind.WINDOW_UPDATE, wire.words(number, stream.to_return)))
                stream.to_return = 0
        self._return_window(amount)

    def _return_window(self, amount: int) -> None:
        self._flow.to_return += amount
        if self._flow.to_return >= _STEP:
            self._out.add(wire.control(Kind.WINDOW_UPDATE, wire.words(0, self._flow.to_return)))
            self._flow.to_return = 0

    def reset(self, number: int, status: Reset = Reset.CANCEL) -> None:
        """Give the stream up in both directions. None there is success."""
        if self._streams.pop(number, None) is not None:
            self._send_reset(number, status)

    def _send_reset(self, number: int, status: Reset) -> None:
        self._out.add(wire.control(Kind.RST_STREAM, wire.words(number, status)))

    def ping(self) -> int:
        """Ask whether the peer is there; PingAnswered brings the number back."""
        number, self._next_ping = self._next_ping, self._next_ping + 2
        self._out.add(wire.control(Kind.PING, wire.words(number)))
        return number

    def go_away(self, status: int = _GOAWAY_OK) -> None:
        """Accept no further streams."""
        if not self._going:
            self._going = True
            self._out.add(wire.control(Kind.GOAWAY, wire.words(self._last_seen, status)))

    def _forget_if_over(self, number: int) -> None:
        stream = self._streams[number]
        if not stream.local_open and not stream.remote_open:
            del self._streams[number]
