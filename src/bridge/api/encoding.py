"""Messages to bytes and back, at a speed that CRI's lists need (design §9).

``encode`` and ``decode`` write what betterproto2 and Google's protobuf write. The code for each class is compiled when
the class is first met: a millisecond or less each, against 0.2 s for all. For lists even that is too slow to do at every
call: keep ``piece(number, item)`` beside each item while it does not change, and answer with ``ready(Type, pieces)``.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

from betterproto2 import Message
from grpclib.encoding.base import CodecBase

from bridge.api import decoders, encoders, wiretypes
from bridge.api.source import Decode, Encode

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


@dataclasses.dataclass(frozen=True, slots=True)
class Ready(Generic[M]):
    """A message of class ``response_type`` that is encoded already."""

    response_type: type[M]
    data: bytes


def ready(response_type: type[M], pieces: Iterable[bytes]) -> M:
    """An already encoded ``response_type``, to be returned by an RPC method as if it were one.

    ``pieces`` are encodings of its fields (see ``piece``) in any order. What comes back is a ``Ready``: it can be sent
    and nothing else, and so is typed as what the method has to return.
    """
    return cast("M", Ready(response_type, b"".join(pieces)))


def piece(number: int, message: Message) -> bytes:
    """``message`` encoded as field ``number`` of the message around it: tag, length, content."""
    data = encode(message)
    return wiretypes.varint(number << 3 | wiretypes.LENGTH) + wiretypes.varint(len(data)) + data


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


class WireCodec(CodecBase):
    """The codec that grpclib is given: the functions above, and ``Ready`` messages as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """The bytes of ``message``. Raises TypeError when it is no ``message_type``."""
        if type(message) is Ready and message.response_type is message_type:
            return message.data
        if type(message) is not message_type:
            raise TypeError(f"a {message_type.__name__} is due, not {message!r:.200}")
        return encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """The ``message_type`` that ``data`` encodes. Raises ValueError on malformed input."""
        return decode(message_type, data)
