"""What is to be sent, in order, in as few objects as can be."""

from __future__ import annotations

from bridge.streaming.outbox import Outbox


def test_everything_comes_in_order_once() -> None:
    box = Outbox()
    large = bytes(range(256)) * 300
    for data in (b"a", b"", b"b", large, memoryview(large)[5:9], large, b"c"):
        box.add(data)
    expected = b"ab" + large + large[5:9] + large + b"c"
    assert box.size == len(expected)
    assert box.take() == expected
    assert (box.size, box.take()) == (0, b"")


def test_many_small_pieces_cost_no_objects() -> None:
    box = Outbox()
    for _ in range(10_000):
        box.add(b"ping" * 3)
    assert len(box._pieces) == 0
    box.add(bytes(5000))
    box.add(b"x")
    assert len(box._pieces) == 2
    assert len(box.take()) == 125_001
