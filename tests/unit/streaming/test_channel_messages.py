"""Channels inside WebSocket messages: raw and base64, in pieces cut anywhere, the close signal, and what is no such message."""

from __future__ import annotations

import base64
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.streaming.channel_messages import Arrived, ChannelCodec, MessageError


def decoded(codec: ChannelCodec, *pieces: bytes) -> tuple[int, bytes, bool] | None:
    """One message in these pieces, as channel, bytes, end."""
    found = [codec.decode(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
    arrived = [one for one in found if one is not None]
    if not arrived:
        return None
    assert len({one.channel for one in arrived}) == 1
    return arrived[0].channel, b"".join(one.data for one in arrived), any(one.end for one in arrived)


def test_raw_messages() -> None:
    codec = ChannelCodec()
    assert decoded(codec, b"\x00hello") == (0, b"hello", False)
    assert decoded(codec, b"", b"\x02", b"", b"he", b"llo", b"") == (2, b"hello", False)
    assert decoded(codec, b"\x00") is None
    assert decoded(codec, b"") is None
    assert decoded(codec, b"\xff\x00") == (255, b"\x00", False), "no signal before v5"
    assert codec.encode(1, b"out") == b"\x01out"


def test_the_close_signal() -> None:
    codec = ChannelCodec(close_signal=True)
    assert decoded(codec, b"\xff\x00") == (0, b"", True)
    assert decoded(codec, b"\xff", b"", b"\x03", b"") == (3, b"", True)
    assert decoded(codec, b"\x00after") == (0, b"after", False)
    for pieces in ([b"\xff"], [b"\xff\x00\x00"], [b"\xff\x00", b"\x00"], [b"\xff", b""]):
        with pytest.raises(MessageError) as caught:
            decoded(ChannelCodec(close_signal=True), *pieces)
        assert caught.value.code == 1002


def test_base64_messages_cut_anywhere() -> None:
    message = b"0" + base64.b64encode(b"hello world")
    for first, second in product(range(len(message) + 1), repeat=2):
        cuts = sorted((first, second))
        pieces = message[: cuts[0]], message[cuts[0] : cuts[1]], message[cuts[1] :]
        codec = ChannelCodec(encoded=True)
        assert decoded(codec, *pieces) == (0, b"hello world", False)
        assert decoded(codec, b"4e30=") == (4, b"{}", False), "nothing of a message is left for the next"
    assert ChannelCodec(encoded=True).encode(1, b"out") == "1b3V0"
    assert decoded(ChannelCodec(encoded=True), b"1") is None


@pytest.mark.parametrize("text", [b"0a", b"0aGVsbG8", b"0aGVs\n", b"0====", b"0!!!!", b"0aA==aGVs", b"0\xff\xff\xff\xff"])
def test_what_is_no_base64(text: bytes) -> None:
    for cut in range(1, len(text)):
        with pytest.raises(MessageError) as caught:
            decoded(ChannelCodec(encoded=True), text[:cut], text[cut:])
        assert caught.value.code == 1007


@given(st.integers(0, 9), st.binary(max_size=300), st.integers(1, 50), st.booleans())
def test_what_is_encoded_is_decoded(channel: int, data: bytes, step: int, encoded: bool) -> None:
    codec = ChannelCodec(encoded=encoded)
    message = codec.encode(channel, data)
    raw = message.encode() if isinstance(message, str) else message
    pieces = [raw[start : start + step] for start in range(0, len(raw), step)]
    expected = (channel, data, False) if data else None
    assert decoded(codec, *pieces) == expected


def test_channels_of_text_below_the_digits_are_far_away() -> None:
    assert ChannelCodec(encoded=True).decode(b"/aGVs", last=True) == Arrived(255, b"hel")
