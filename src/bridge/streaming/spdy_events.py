"""What a SPDY peer does, as the state machine (spdy) tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream. Answer with ``reply`` or ``reset``; ``end``: it will send no data."""

    stream: int
    headers: Mapping[str, str]
    end: bool


@dataclass(frozen=True, slots=True)
class StreamAnswered:
    """The peer answered a stream of ours, or sent further headers on one."""

    stream: int
    headers: Mapping[str, str]
    end: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Data of a stream; ``end``: its last. ``consumed`` must be told once it is used."""

    stream: int
    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer gave the stream up, in both directions. ``status`` is an RST_STREAM status code."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowGrew:
    """More may be sent: on ``stream``, or on all (0)."""

    stream: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The peer answered our ping."""

    number: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer accepts no further streams; those above ``last`` it has not seen."""

    last: int
    status: int


Event = StreamOpened | StreamAnswered | DataReceived | StreamReset | WindowGrew | PingAnswered | GoneAway
