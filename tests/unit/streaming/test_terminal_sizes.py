"""Sizes on the resize channel, cut anywhere."""

from __future__ import annotations

import time

import pytest

from bridge.streaming.terminal_sizes import TerminalSizes


def test_split_at_every_place() -> None:
    whole = b'{"Width":80,"Height":24}\n{"Width":132,"Height":43}\n'
    for cut in range(len(whole) + 1):
        sizes = TerminalSizes()
        found = [size for part in (whole[:cut], whole[cut:]) if (size := sizes.feed(part))]
        assert found[-1] == (132, 43), cut


def test_several_at_once_mean_the_last() -> None:
    assert TerminalSizes().feed(b'{"Width":1,"Height":1}{"width":2,"height":3}') == (2, 3)


@pytest.mark.parametrize(
    "text",
    [b"{}", b'{"Width":"80","Height":24}', b'{"Width":70000,"Height":24}', b'{"Width":-1,"Height":24}', b'{"Width":true,"Height":24}'],
)
def test_what_is_no_size_is_ignored(text: bytes) -> None:
    sizes = TerminalSizes()
    assert sizes.feed(text) is None
    assert sizes.feed(b'{"Width":80,"Height":24}') == (80, 24)


@pytest.mark.parametrize("text", [b"hello", b"[1,2]", b'{"Width":"' + b"a" * 5000, b"\xff\xfe"])
def test_after_nonsense_nothing_is_taken_nor_kept(text: bytes) -> None:
    sizes = TerminalSizes()
    assert sizes.feed(text) is None
    for _ in range(3):
        assert sizes.feed(b'{"Width":80,"Height":24}') is None
    assert len(sizes._text) < 6000


def test_deep_nesting_is_nonsense_too() -> None:
    assert TerminalSizes().feed(b'{"a":' * 100_000) is None


def test_a_flood_costs_little() -> None:
    began = time.process_time()
    for _ in range(20):
        TerminalSizes().feed(b"{}" * 131072)
    assert time.process_time() - began < 1
