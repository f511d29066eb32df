"""The SPDY machine byte by byte: every frame type, input cut anywhere, limits, and peers that break the rules."""

from __future__ import annotations

import contextlib
import random
import zlib

import pytest

from bridge.streaming import spdy_frames as wire
from bridge.streaming.spdy import INITIAL_WINDOW, Limits, SpdyMachine
from bridge.streaming.spdy_events import DataReceived, Event, GoneAway, PingAnswered, StreamAnswered, StreamOpened, StreamReset, WindowGrew
from bridge.streaming.spdy_frames import DICTIONARY, HeaderCodec, Kind, Reset, SpdyError, control, words

HEADERS = [("streamType", "stdin"), ("x", "1")]


def pair() -> tuple[SpdyMachine, SpdyMachine]:
    return SpdyMachine(), SpdyMachine(client=True)


def exchange(source: SpdyMachine, target: SpdyMachine) -> list[Event]:
    return target.receive(source.to_send())


def test_the_dictionary_is_the_standards() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


def test_a_stream_from_opening_to_end() -> None:
    server, client = pair()
    number = client.open(HEADERS)
    assert number == 1
    assert exchange(client, server) == [StreamOpened(1, {"streamtype": "stdin", "x": "1"}, end=False)]
    server.reply(1, [("status", "ok")])
    server.reply(1)
    assert exchange(server, client) == [StreamAnswered(1, {"status": "ok"}, end=False)]
    client.send(1, b"abc")
    client.send(1, b"def", end=True)
    assert exchange(client, server) == [DataReceived(1, b"abc", end=False), DataReceived(1, b"def", end=True)]
    assert server.is_open(1)
    server.send(1, b"answer", end=True)
    assert not server.is_open(1)
    assert exchange(server, client) == [DataReceived(1, b"answer", end=True)]
    client.send(1, b"too late")
    assert client.to_send() == b""


def test_an_empty_frame_ends_a_stream() -> None:
    server, client = pair()
    client.open(HEADERS)
    client.send(1, b"", end=True)
    assert exchange(client, server)[1:] == [DataReceived(1, b"", end=True)]
    assert client.open(HEADERS, end=True) == 3
    assert exchange(client, server) == [StreamOpened(3, {"streamtype": "stdin", "x": "1"}, end=True)]


def test_input_cut_at_every_place_gives_the_same() -> None:
    client = SpdyMachine(client=True)
    client.open(HEADERS)
    client.send(1, b"hello world")
    client.ping()
    client.open([("streamtype", "error")])
    client.send(1, b"", end=True)
    client.reset(3)
    client.go_away()
    data = client.to_send()
    whole = SpdyMachine()
    expected, answers = _joined(whole.receive(data)), whole.to_send()
    for cut in range(len(data) + 1):
        machine = SpdyMachine()
        assert _joined([*machine.receive(data[:cut]), *machine.receive(data[cut:])]) == expected
        assert machine.to_send() == answers
    machine = SpdyMachine()
    assert _joined([event for byte in data for event in machine.receive(bytes([byte]))]) == expected


def _joined(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of one stream's data as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream == event.stream:
            found[-1] = DataReceived(event.stream, last.data + event.data, event.end)
        else:
            found.append(event)
    return found


def test_ping_both_ways() -> None:
    server, client = pair()
    assert (client.ping(), client.ping(), server.ping()) == (1, 3, 2)
    ours = server.to_send()
    assert exchange(client, server) == []
    assert exchange(server, client) == [PingAnswered(1), PingAnswered(3)]
    assert client.receive(ours) == []
    assert exchange(client, server) == [PingAnswered(2)]


def test_reset_by_either_side() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    server.reset(1, Reset.INTERNAL_ERROR)
    server.reset(1)
    assert exchange(server, client) == [StreamReset(1, Reset.INTERNAL_ERROR)]
    assert client.room(1) == 0
    client.open(HEADERS)
    client.reset(3)
    assert exchange(client, server)[1:] == [StreamReset(3, Reset.CANCEL)]
    server.send(3, b"nobody")
    assert server.to_send() == b""


def test_data_for_a_stream_that_we_gave_up_is_dropped_and_for_one_that_never_was_is_refused() -> None:
    server, client = pair()
    client.open(HEADERS)
    client.send(1, b"x")
    data = client.to_send()
    server.receive(data[: data.rindex(b"x") - 8])
    server.reset(1)
    server.to_send()
    assert server.receive(data[data.rindex(b"x") - 8 :]) == []
    assert server.to_send() == b""
    server.receive(wire.data_head(99, 1, end=False) + b"x")
    assert server.to_send() == control(Kind.RST_STREAM, words(99, Reset.INVALID_STREAM))


def test_go_away_refuses_what_comes_later() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    server.go_away()
    server.go_away()
    assert exchange(server, client) == [GoneAway(1, 0)]
    client.open(HEADERS)
    assert exchange(client, server) == []
    assert exchange(server, client) == [StreamReset(3, Reset.REFUSED_STREAM)]


def test_no_window_for_a_peer_that_keeps_none() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    for _ in range(10):
        server.send(1, bytes(INITIAL_WINDOW))
    assert sum(len(event.data) for event in exchange(server, client) if isinstance(event, DataReceived)) == 10 * INITIAL_WINDOW


def test_windows_once_the_peer_keeps_them() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    settings = control(Kind.SETTINGS, words(1) + words(7, 1000))
    assert server.receive(settings) == [WindowGrew(0)]
    assert server.room(1) == 1000
    server.send(1, bytes(1000))
    assert server.room(1) == 0
    with pytest.raises(ValueError, match="window of 0"):
        server.send(1, b"x")
    assert server.receive(control(Kind.WINDOW_UPDATE, words(1, 500))) == [WindowGrew(1)]
    assert server.room(1) == 500
    assert server.receive(control(Kind.SETTINGS, words(1) + words(7, 1100))) == [WindowGrew(0)]
    assert server.room(1) == 600
    client.open(HEADERS)
    exchange(client, server)
    assert server.room(3) == 1100
    server.send(1, b"", end=True)
    assert server.room(1) == 0


def test_the_connections_window_counts_too() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    server.receive(control(Kind.SETTINGS, words(1) + words(7, 1 << 20)))
    assert server.room(1) == INITIAL_WINDOW
    server.send(1, bytes(INITIAL_WINDOW))
    assert server.room(1) == 0
    server.receive(control(Kind.WINDOW_UPDATE, words(0, 7)))
    assert server.room(1) == 7


def test_what_was_used_is_told_in_steps() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    server.consumed(1, 100)
    assert server.to_send() == b""
    server.consumed(1, INITIAL_WINDOW // 2)
    grown = exchange(server, client)
    assert grown == [WindowGrew(1), WindowGrew(0)]


def test_a_window_can_not_overflow() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    huge = words(1, 0x7FFFFFFF)
    assert server.receive(control(Kind.WINDOW_UPDATE, huge)) == [StreamReset(1, Reset.FLOW_CONTROL_ERROR)]
    with pytest.raises(SpdyError, match="2 GiB"):
        server.receive(control(Kind.WINDOW_UPDATE, words(0, 0x7FFFFFFF)))


def test_more_streams_than_allowed_are_refused_one_by_one() -> None:
    server, client = SpdyMachine(limits=Limits(streams=2)), SpdyMachine(client=True)
    for _ in range(3):
        client.open(HEADERS)
    assert [event.stream for event in exchange(client, server) if isinstance(event, StreamOpened)] == [1, 3]
    assert exchange(server, client) == [StreamReset(5, Reset.REFUSED_STREAM)]
    client.reset(1)
    client.open(HEADERS)
    assert [type(event) for event in exchange(client, server)] == [StreamReset, StreamOpened]


def syn(number: int, headers: bytes | None = None) -> bytes:
    return control(Kind.SYN_STREAM, words(number, 0) + bytes(2) + (headers or HeaderCodec(1000).encode(HEADERS)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02\x00\x01" + words(0), "version 2"),
        (control(Kind.PING, b"12345"), "PING"),
        (control(Kind.SYN_STREAM, b"short"), "too short"),
        (control(Kind.SYN_REPLY, b""), "too short"),
        (syn(2), "not the peer's"),
        (syn(0), "not the peer's"),
        (syn(1, b"no zlib at all"), "decompressed"),
        (control(Kind.RST_STREAM, b"1"), "RST_STREAM"),
        (control(Kind.GOAWAY, b"1"), "GOAWAY"),
        (control(Kind.WINDOW_UPDATE, b"1"), "WINDOW_UPDATE"),
        (control(Kind.SETTINGS, words(2) + words(7, 1)), "SETTINGS"),
        (control(Kind.SETTINGS, words(1) + words(7, 0x80000000)), "initial window"),
        (wire.control(Kind.HEADERS, bytes(70000)), "control frame of 70000"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_told_and_left(data: bytes, said: str) -> None:
    server = SpdyMachine()
    with pytest.raises(SpdyError, match=said):
        server.receive(data)
    assert SpdyMachine(client=True).receive(server.to_send()) == [GoneAway(0, 1)]


def test_stream_numbers_only_grow() -> None:
    server, codec = SpdyMachine(), HeaderCodec(1000)
    server.receive(syn(5, codec.encode(HEADERS)))
    with pytest.raises(SpdyError, match="stream 3 after 5"):
        server.receive(syn(3, codec.encode(HEADERS)))


def test_a_reply_that_nobody_waits_for() -> None:
    server, client = pair()
    client.open(HEADERS)
    exchange(client, server)
    with pytest.raises(SpdyError, match="needs none"):
        server.receive(control(Kind.SYN_REPLY, words(1) + client._headers.encode([])))
    assert SpdyMachine().receive(control(Kind.SYN_REPLY, words(77) + HeaderCodec(100).encode([]))) == []


def test_a_header_bomb_costs_its_limit_only() -> None:
    bomb = HeaderCodec(1 << 30)
    block = bomb.encode([("x", "a" * (20 << 20))])
    assert len(block) < 64 << 10
    with pytest.raises(SpdyError, match="more than 65536 bytes"):
        SpdyMachine().receive(syn(1, block))


@pytest.mark.parametrize(
    "block", [b"", words(1), words(1, 5) + b"abc", words(0) + b"x", words(2, 1) + b"a" + words(1) + b"b", words(1, 0, 0), words(1 << 31)]
)
def test_header_blocks_that_do_not_fit(block: bytes) -> None:
    compressor = zlib.compressobj(zdict=DICTIONARY)
    with pytest.raises(SpdyError, match="header block"):
        HeaderCodec(1000).decode(compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH))


def test_repeated_names_are_joined_by_us_and_refused_from_others() -> None:
    codec = HeaderCodec(1000)
    assert HeaderCodec(1000).decode(codec.encode([("A", "1"), ("a", "2")])) == {"a": "1\0" + "2"}
    block = words(2) + (words(1) + b"a" + words(1) + b"1") * 2
    compressor = zlib.compressobj(zdict=DICTIONARY)
    with pytest.raises(SpdyError, match="repeated"):
        HeaderCodec(1000).decode(compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH))


def test_unknown_frames_and_settings_are_ignored() -> None:
    server = SpdyMachine()
    assert server.receive(control(Kind(9), words(0, 0))) == [WindowGrew(0)]
    frame = (0x80000000 | 3 << 16 | 11).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"what"
    assert server.receive(frame) == []
    assert server.receive(control(Kind.SETTINGS, words(1) + words(3, 5))) == []
    assert server.to_send() == b""


def test_random_bytes_end_in_an_error_or_in_nothing() -> None:
    dice = random.Random(5)
    for _ in range(2000):
        machine = SpdyMachine()
        data = bytearray(syn(1) + control(Kind.PING, words(1)) + wire.data_head(1, 5, end=True) + b"hello")
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        with contextlib.suppress(SpdyError):
            machine.receive(bytes(data))
        assert len(machine.to_send()) < 200
