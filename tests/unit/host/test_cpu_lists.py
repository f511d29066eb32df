from __future__ import annotations

import pytest

from bridge.host.cpu_lists import parse


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", set()), ("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), ("5-5,5", {5})],
)
def test_lists(text: str, numbers: set[int]) -> None:
    assert parse(text) == numbers


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1,", "3-1", "0-70000", "1 2", "0-10:2/5", "0x1", "٣"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|before|above"):
        parse(text)
