"""What came and was not read: in order, and without an object for each byte."""

from __future__ import annotations

import random
import tracemalloc

from bridge.streaming.inbox import Inbox


def test_everything_comes_out_in_order_in_pieces_that_are_not_small() -> None:
    source, inbox, taken = random.Random(1), Inbox(), b""
    sent = b"".join(source.randbytes(source.choice([1, 5, 3000, 70000])) for _ in range(200))
    position = 0
    while position < len(sent) or inbox.size:
        step = source.choice([1, 2, 900, 5000, 66000])
        inbox.add(sent[position : position + step])
        position += step
        if source.random() < 0.3:
            before = inbox.size
            data = inbox.take()
            assert len(data) >= min(before, 65536)
            taken += data
    assert taken + inbox.take() == sent


def test_nothing() -> None:
    inbox = Inbox()
    inbox.add(b"")
    assert (inbox.size, inbox.take()) == (0, b"")


def test_bytes_that_come_one_by_one_cost_little_more_than_themselves() -> None:
    inbox = Inbox()
    tracemalloc.start()
    try:
        for number in range(200_000):
            inbox.add(number.to_bytes(2, "big")[:2] if number < 65536 else b"ab")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert inbox.size == 400_000
    assert used < 600_000
