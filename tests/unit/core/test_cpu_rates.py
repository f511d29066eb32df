from __future__ import annotations

from bridge.core.cpu_rates import CpuRates

SECOND = 1_000_000_000


def test_the_first_look_is_compared_with_the_beginning() -> None:
    assert CpuRates().observe("a", 10 * SECOND, SECOND, began_ns=8 * SECOND) == SECOND // 2
    assert CpuRates().observe("a", 10 * SECOND, SECOND) is None
    assert CpuRates().observe("a", 10 * SECOND, SECOND, began_ns=10 * SECOND) is None


def test_what_began_this_moment_has_no_rate_until_a_second_has_passed() -> None:
    rates = CpuRates()
    assert rates.observe("a", 10 * SECOND + 5, 5, began_ns=10 * SECOND) is None
    assert rates.observe("a", 12 * SECOND, SECOND, began_ns=10 * SECOND) == SECOND // 2


def test_what_one_did_since_it_began_long_ago_says_nothing_of_now() -> None:
    rates = CpuRates()
    assert rates.observe("a", 1000 * SECOND, 500 * SECOND, began_ns=10 * SECOND) is None
    assert rates.observe("a", 1002 * SECOND, 500 * SECOND, began_ns=10 * SECOND) == 0


def test_two_looks() -> None:
    rates = CpuRates()
    rates.observe("a", 10 * SECOND, 0)
    assert rates.observe("a", 12 * SECOND, 4 * SECOND) == 2 * SECOND
    assert rates.observe("b", 12 * SECOND, 4 * SECOND) is None


def test_looks_close_together_give_no_noise() -> None:
    rates = CpuRates()
    rates.observe("a", 10 * SECOND, 0)
    assert rates.observe("a", 12 * SECOND, SECOND) == SECOND // 2
    assert rates.observe("a", 12 * SECOND + 5, SECOND + 5) == SECOND // 2
    assert rates.observe("a", 13 * SECOND, 2 * SECOND) == SECOND


def test_a_counter_that_begins_anew_and_one_that_is_forgotten() -> None:
    rates = CpuRates()
    rates.observe("a", 10 * SECOND, 5 * SECOND)
    assert rates.observe("a", 12 * SECOND, 1) is None
    rates.forget(lambda ident: ident != "a")
    assert rates.observe("a", 14 * SECOND, 2) is None
