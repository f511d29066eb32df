"""Messages as grpclib is given them, and lists that are encoded already (design §9).

For lists even ``bridge.wire.codec`` is too slow to encode all of them at every call: keep ``piece(number, item)`` beside each item
while it does not change, and answer with ``ready(Type, pieces)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

from betterproto2 import Message
from grpclib.encoding.base import CodecBase

from bridge.wire.codec import decode, encode, piece, renumbered

__all__ = ["Ready", "WireCodec", "decode", "encode", "piece", "ready", "renumbered"]

M = TypeVar("M", bound=Message)


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
