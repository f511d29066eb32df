"""Encoded list items: kept while nothing changes, encoded when they are asked for."""

from __future__ import annotations

from dataclasses import replace

from bridge._proto.runtime import v1 as pb
from bridge.api import convert, encoding
from bridge.api.pieces import Pieces
from bridge.ports.images import Image
from bridge.testing.fake_stores import IMAGE


def test_an_image_is_encoded_again_only_when_it_has_changed() -> None:
    encoded: list[Image] = []

    def convert_counted(image: Image) -> pb.Image:
        encoded.append(image)
        return convert.image(image)

    pieces = Pieces(convert_counted, lambda image: image)
    first = list(pieces.of([IMAGE], 1))
    assert list(pieces.of([replace(IMAGE)], 1)) == first, "an equal one, made anew for this list"
    assert len(encoded) == 1
    tagged = replace(IMAGE, repo_tags=("example.com/other:1",))
    (piece,) = pieces.of([tagged], 1)
    assert len(encoded) == 2
    assert encoding.decode(pb.ListImagesResponse, piece).images[0].repo_tags == ["example.com/other:1"]
