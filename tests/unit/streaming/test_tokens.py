"""One-time tokens: once, for a minute, so many; and nothing tells a wrong one from a used one."""

from __future__ import annotations

import pytest

from bridge.core.stream_requests import PortForwardRequest
from bridge.errors import LimitExceeded
from bridge.streaming.tokens import LIFETIME_SECONDS, MAX_PENDING, Tokens


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_good_once_and_only_as_it_is() -> None:
    tokens, request = Tokens(), PortForwardRequest("p")
    token = tokens.issue(request)
    for guess in ("", token[:-1], token + "A", token.swapcase(), "é" * 43):
        assert tokens.redeem(guess) is None
    assert tokens.redeem(token) is request
    assert tokens.redeem(token) is None
    assert len(tokens) == 0


def test_tokens_do_not_repeat_and_are_long() -> None:
    tokens = Tokens()
    issued = {tokens.issue(PortForwardRequest("p")) for _ in range(500)}
    assert len(issued) == 500
    assert {len(token) for token in issued} == {43}, "256 bits"


def test_a_token_ends_with_its_minute() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    early = tokens.issue(PortForwardRequest("early"))
    clock.now = LIFETIME_SECONDS - 1
    late = tokens.issue(PortForwardRequest("late"))
    clock.now = LIFETIME_SECONDS
    assert tokens.redeem(early) is None
    assert tokens.redeem(late) == PortForwardRequest("late")


def test_only_so_many_wait_and_the_oldest_make_room_by_expiring() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    first = tokens.issue(PortForwardRequest("p"))
    for _ in range(MAX_PENDING - 1):
        clock.now += 0.01
        tokens.issue(PortForwardRequest("p"))
    with pytest.raises(LimitExceeded, match="1000 streams wait"):
        tokens.issue(PortForwardRequest("p"))
    tokens.redeem(first)
    tokens.issue(PortForwardRequest("p"))
    with pytest.raises(LimitExceeded):
        tokens.issue(PortForwardRequest("p"))
    clock.now = LIFETIME_SECONDS + 0.015
    tokens.issue(PortForwardRequest("p"))
    assert len(tokens) == MAX_PENDING
