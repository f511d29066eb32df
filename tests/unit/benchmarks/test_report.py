"""The arithmetic behind the published tables."""

import pytest

from benchmarks.report import Table, percentile, ratio_interval


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.95, 3.85)])
def test_percentile_interpolates_between_neighbours(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.95) == 7.0


def test_interval_of_equal_servers_contains_one_and_of_different_ones_does_not() -> None:
    values = [float(10 + number % 7) for number in range(40)]
    low, high = ratio_interval(values, values)
    assert low <= 1.0 <= high
    low, high = ratio_interval([value / 2 for value in values], values)
    assert high < 1.0


def test_table_has_a_row_a_label_and_the_ratio_of_the_second_server_over_the_first() -> None:
    table = Table("Cycle", "ms", ["peer", "ours"])
    for value in (10.0, 20.0, 30.0):
        table.add("runp", "peer", value)
        table.add("runp", "ours", value / 2)
    assert "| runp | 20.0 | 29.0 | 10.0 | 14.5 | 0.50 |" in table.markdown().splitlines()


def test_table_of_single_values_has_one_column_a_server() -> None:
    table = Table("Memory", "MiB", ["peer", "ours"], shares=())
    table.add("0 pods", "peer", 40.0)
    table.add("0 pods", "ours", 60.0)
    lines = table.markdown().splitlines()
    assert lines[2] == "|  | peer | ours | ratio |"
    assert lines[4] == "| 0 pods | 40.0 | 60.0 | 1.50 |"


def test_a_step_that_one_server_lacks_is_shown_as_missing() -> None:
    table = Table("Cycle", "ms", ["peer", "ours"])
    table.add("rmp", "peer", 1.0)
    assert "| rmp | 1.00 | 1.00 | – | – | – |" in table.markdown()
