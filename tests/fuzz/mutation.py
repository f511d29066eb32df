"""Mutations of examples, the same for the same seed: no coverage guides them, so the examples must be good."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_WORDS = (
    b"\0",
    b"\xff" * 8,
    b"..",
    b"/",
    b"{",
    b"[" * 300,
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"\x80" + bytes(11),
    b"7" * 11,
    b"\n",
    b"=",
)
_MOST_EDITS = 6
_LONGEST = 200_000


def mutated(examples: Sequence[bytes], rounds: int, seed: int) -> Iterator[bytes]:
    """``rounds`` inputs: the examples as they are, then mutations of them."""
    source = random.Random(seed)
    yield from examples[:rounds]
    for _ in range(rounds - len(examples)):
        data = bytearray(source.choice(examples))
        for _ in range(source.randint(1, _MOST_EDITS)):
            _edit(data, source, examples)
        yield bytes(data[:_LONGEST])


def _edit(data: bytearray, source: random.Random, examples: Sequence[bytes]) -> None:
    at = source.randint(0, len(data))
    match source.randrange(7):
        case 0 if data:
            data[at % len(data)] ^= 1 << source.randrange(8)
        case 1 if data:
            data[at % len(data)] = source.randrange(256)
        case 2:
            del data[at : at + source.randint(1, 40)]
        case 3:
            word = source.choice(_WORDS)
            data[at : at + len(word)] = word
        case 4:
            data[at:at] = source.choice(_WORDS)
        case 5:
            other = source.choice(examples)
            begin = source.randint(0, len(other))
            data[at:] = other[begin : begin + 4096]
        case _:
            start = source.randint(0, len(data))
            data[at:at] = data[start : start + source.randint(1, 600)]
