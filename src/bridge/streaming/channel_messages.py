"""Channels inside WebSocket messages, without I/O: each message begins with its channel's number.

Subprotocols ``[vN.]channel.k8s.io``: a byte with the number, then bytes. ``[v4.]base64.channel.k8s.io``: text, a digit and base64.
From v5 on a message of channel 255 says that the client has closed the channel whose number follows. A message is decoded as it
comes, so a large one is never held. Source: k8s.io/apimachinery wsstream, KEP 4006.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from bridge.errors import InvalidRequest

CLOSE_SIGNAL = 255
_PROTOCOL_ERROR, _INVALID_DATA = 1002, 1007


class MessageError(InvalidRequest):
    """The client broke the channel protocol; ``code`` is for the WebSocket's close frame."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes for a channel; ``end``: the client has closed it."""

    channel: int
    data: bytes
    end: bool = False


class ChannelCodec:
    """Messages to channels and back, for one of the subprotocols."""

    def __init__(self, *, encoded: bool = False, close_signal: bool = False) -> None:
        self._encoded = encoded
        self._close_signal = close_signal
        self._channel: int | None = None
        self._rest = b""
        self._padded = False

    def decode(self, piece: bytes, *, last: bool) -> Arrived | None:
        """What the next piece of a message brings; ``last``: it ends the message. Raises MessageError."""
        if self._channel is None and piece:
            first, piece = piece[0], piece[1:]
            self._channel = (first - ord("0")) % 256 if self._encoded else first
        channel = self._channel
        if channel == CLOSE_SIGNAL and self._close_signal:
            found = self._closed(piece, last=last)
        else:
            data = self._decoded(piece, last=last) if self._encoded else piece
            found = Arrived(channel, data) if channel is not None and data else None
        if last:
            self._channel = None
        return found

    def encode(self, channel: int, data: bytes) -> bytes | str:
        """The message that carries ``data``."""
        if self._encoded:
            return chr(ord("0") + channel) + base64.b64encode(data).decode("ascii")
        return bytes([channel]) + data

    def _closed(self, piece: bytes, *, last: bool) -> Arrived | None:
        self._rest += piece[:2]
        if not last and len(self._rest) <= 1:
            return None
        rest, self._rest = self._rest, b""
        if len(rest) != 1:
            raise MessageError(_PROTOCOL_ERROR, "a close signal must name one channel")
        return Arrived(rest[0], b"", end=True)

    def _decoded(self, piece: bytes, *, last: bool) -> bytes:
        text = self._rest + piece
        whole = len(text) if last else len(text) // 4 * 4
        self._rest = text[whole:]
        try:
            if self._padded and whole:
                raise MessageError(_INVALID_DATA, "base64 goes on after its padding")
            data = base64.b64decode(text[:whole], validate=True)
        except binascii.Error as exc:
            raise MessageError(_INVALID_DATA, f"no base64: {exc}") from exc
        self._padded = not last and text[:whole].endswith(b"=")
        return data
