"""Encoded list items: kept while nothing changes, and spread over messages in a stream."""

from __future__ import annotations

from dataclasses import replace

from bridge._proto.runtime import v1 as pb
from bridge.api import convert, encoding
from bridge.api.pieces import Pieces, messages
from bridge.ports.images import Image
from bridge.testing.fake_stores import IMAGE


def test_an_image_is_encoded_again_only_when_it_has_changed() -> None:
    encoded: list[Image] = []

    def convert_counted(image: Image) -> pb.Image:
        encoded.append(image)
        return convert.image(image)

    pieces = Pieces(convert_counted, lambda image: image)
    first = pieces.of([IMAGE], 1)
    assert pieces.of([replace(IMAGE)], 1) == first, "an equal one, made anew for this list"
    assert len(encoded) == 1
    tagged = replace(IMAGE, repo_tags=("example.com/other:1",))
    (piece,) = pieces.of([tagged], 1)
    assert len(encoded) == 2
    assert encoding.decode(pb.ListImagesResponse, piece).images[0].repo_tags == ["example.com/other:1"]


def test_messages_of_a_stream_stay_small_and_lose_nothing() -> None:
    pieces = [bytes([number]) * 400_000 for number in range(7)]
    found = list(messages(pieces))
    assert [len(message) for message in found] == [3, 3, 1]
    assert [piece for message in found for piece in message] == pieces
    assert list(messages([])) == []
    assert list(messages([b"x" * 5_000_000, b"y"])) == [[b"x" * 5_000_000], [b"y"]], "one that is too large goes alone"
