"""Long lists over a server stream: several messages, each bounded by its encoded size.

What bounds the memory of a stream is that its items are encoded when their message is due, and that a message is due when the
peer has taken the one before: the transport waits for the peer's window. So a list of any length costs one message and the
references to its items; a reader that is slow holds up nobody but itself, and one that goes away ends the stream between two
messages.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import TypeVar

import anyio.lowlevel
from betterproto2 import Message

from bridge.api import encoding

M = TypeVar("M", bound=Message)

MESSAGE = 1 << 20
"""Bytes of one message: far below what any client takes (4 MiB is gRPC's default), far above what a message costs."""


def gather(pieces: Iterable[bytes], size: int = MESSAGE) -> Iterator[list[bytes]]:
    """``pieces`` in order, in groups of at most ``size`` bytes; a piece that is larger than that goes alone. Takes them as needed."""
    group: list[bytes] = []
    held = 0
    for piece in pieces:
        if group and held + len(piece) > size:
            yield group
            group, held = [], 0
        group.append(piece)
        held += len(piece)
    if group:
        yield group


async def stream(response_type: type[M], pieces: Iterable[bytes], size: int = MESSAGE) -> AsyncGenerator[M, None]:
    """A list as messages ``response_type``, whose field 1 is the repeated item in every Stream* RPC of the CRI.

    ``pieces`` are items encoded as that field (see ``items``), best a generator: it is asked for the next ones once the message before
    was sent. An empty list is a stream without a message, as with other runtimes.
    """
    for group in gather(pieces, size):
        yield encoding.ready(response_type, group)
        # A peer that reads fast never makes the transport wait: others get their turn here, and a cancelled call ends.
        await anyio.lowlevel.checkpoint()


def items(messages: Iterable[Message]) -> Iterator[bytes]:
    """Each message as field 1 of the list around it, encoded when it is asked for."""
    return (encoding.piece(1, message) for message in messages)
