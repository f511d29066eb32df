"""Frames are the bytes that ttrpc's specification draws, come out however they are split, and bad ones hurt as little as they can."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import CorruptData, LimitExceeded
from bridge.shimv2.frames import HEADER, MAX_DATA, Decoder, Flags, Frame, Kind, Oversized, encode

FRAMES = [
    Frame(1, Kind.REQUEST, Flags.NONE, b"\x0a\x01s"),
    Frame(1, Kind.RESPONSE, Flags.NONE, b""),
    Frame(3, Kind.REQUEST, Flags.REMOTE_OPEN, b""),
    Frame(3, Kind.DATA, Flags.NONE, b"x" * 300),
    Frame(3, Kind.DATA, Flags.REMOTE_CLOSED | Flags.NO_DATA, b""),
    Frame(0xFFFFFFFF, 9, 0xFF, b"of a later version"),
]


def wire(frames: list[Frame]) -> bytes:
    return b"".join(encode(frame.stream, frame.kind, frame.flags, frame.data) for frame in frames)


def test_a_frame_is_ten_bytes_of_header_and_its_data() -> None:
    assert encode(0x01020305, Kind.DATA, Flags.REMOTE_CLOSED | Flags.NO_DATA, b"ab") == b"\0\0\0\2\1\2\3\5\3\5ab"


def test_frames_come_out_the_same_however_the_bytes_are_split() -> None:
    stream = wire(FRAMES)
    for at in range(len(stream) + 1):
        decoder = Decoder()
        assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) == FRAMES
        decoder.end()
    decoder = Decoder()
    assert [frame for at in range(len(stream)) for frame in decoder.feed(stream[at : at + 1])] == FRAMES


frames = st.builds(
    Frame, st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=200) | st.just(b"y" * 70000)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_any_frames_survive_any_pieces(sent: list[Frame], sizes: list[int]) -> None:
    stream, decoder, got, at = wire(sent), Decoder(), [], 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        got += decoder.feed(stream[at : at + size])
        at += size
    assert got == sent


@pytest.mark.parametrize("at", [0, 1, HEADER, HEADER + 1, HEADER + MAX_DATA, HEADER + MAX_DATA + 1])
def test_what_is_too_long_is_skipped_and_what_follows_is_read(at: int) -> None:
    stream = struct.pack(">IIBB", MAX_DATA + 1, 7, Kind.REQUEST, 0) + b"z" * (MAX_DATA + 1) + wire(FRAMES)
    decoder = Decoder()
    assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) == [Oversized(7, Kind.REQUEST, MAX_DATA + 1), *FRAMES]


def test_the_largest_frame_passes_and_the_next_is_not_sent() -> None:
    data = b"z" * MAX_DATA
    assert Decoder().feed(encode(1, Kind.DATA, 0, data)) == [Frame(1, Kind.DATA, 0, data)]
    with pytest.raises(LimitExceeded, match="4194305 bytes"):
        encode(1, Kind.DATA, 0, data + b"z")


def test_a_length_with_its_reserved_byte_is_no_frame() -> None:
    with pytest.raises(CorruptData, match="reserved byte"):
        Decoder().feed(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("stream", [b"\0", wire(FRAMES)[:-1], struct.pack(">IIBB", MAX_DATA + 1, 7, 1, 0)])
def test_an_end_within_a_frame_is_noticed(stream: bytes) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    with pytest.raises(CorruptData, match="within a ttrpc frame"):
        decoder.end()
