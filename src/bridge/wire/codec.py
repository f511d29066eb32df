"""Messages to bytes and back, at a speed that CRI's lists need (design §9).

``encode`` and ``decode`` write what betterproto2 and Google's protobuf write. The code for each class is compiled when
the class is first met: a millisecond or less each, against 0.2 s for all.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar, cast

from betterproto2 import Message

from bridge.wire import decoders, encoders, wiretypes
from bridge.wire.source import Decode, Encode

M = TypeVar("M", bound=Message)

_encoders: dict[type[Any], Encode] = {}
_decoders: dict[type[Any], Decode] = {}


def _encoder_of(cls: type[Any]) -> Encode:
    found = _encoders.get(cls)
    if found is None:
        found = _encoders[cls] = encoders.encoder(cls, _encoder_of)
    return found


def _decoder_of(cls: type[Any]) -> Decode:
    found = _decoders.get(cls)
    if found is None:
        found = _decoders[cls] = decoders.decoder(cls, _decoder_of, _encoder_of)
    return found


def piece(number: int, message: Message) -> bytes:
    """``message`` encoded as field ``number`` of the message around it: tag, length, content."""
    data = encode(message)
    return wiretypes.varint(number << 3 | wiretypes.LENGTH) + wiretypes.varint(len(data)) + data


def renumbered(number: int, piece: bytes) -> bytes:
    """A ``piece`` of a field 1 to 15 as the piece of field ``number`` (1 to 15): the tag of either is one byte."""
    return wiretypes.varint(number << 3 | wiretypes.LENGTH) + piece[1:]


def encode(message: Message) -> bytes:
    """The protobuf encoding of ``message``; fields in order of number, unknown fields last.

    Raises ValueError, TypeError or AttributeError when a field holds something that is not of its type.
    """
    cls = type(message)
    return (_encoders.get(cls) or _encoder_of(cls))(message)


def decode(cls: type[M], data: bytes) -> M:
    """The message that ``data`` encodes. Unknown fields and enum numbers are kept. Raises ValueError on malformed input."""
    try:
        return cast("M", (_decoders.get(cls) or _decoder_of(cls))(data, 0, len(data)))
    except (IndexError, struct.error, RecursionError, ValueError) as exc:
        raise ValueError(f"malformed {cls.__name__}: {exc}") from exc
