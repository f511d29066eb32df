"""What Kata makes of a pod's sizes: the cases of its own arithmetic."""

from __future__ import annotations

import pytest
from bridge_kata import sizing
from bridge_kata.sizing import Workload


def sizes(*, period: str = "0", quota: str = "0", shares: str = "0", memory: str = "0") -> dict[str, str]:
    return {sizing.PERIOD: period, sizing.QUOTA: quota, sizing.SHARES: shares, sizing.MEMORY: memory}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Workload()),
        (sizes(), Workload()),
        (sizes(period="100000", quota="220000", memory="1048576"), Workload(2.2, 1)),
        (sizes(period="100000", quota="220000", memory=str((1 << 20) - 1)), Workload(2.2, 0)),
        (sizes(period="100000", quota="0", shares="2"), Workload()),  # best effort: the kernel's least shares are no request
        (sizes(period="100000", quota="-1", shares="2048", memory="-1"), Workload(2.0, 0)),  # pinned CPUs have no quota
        (sizes(period="100000", quota="-1", shares="2049"), Workload(3.0, 0)),
        (sizes(period="0", quota="100000"), Workload()),
        (sizes(period="soon", quota="much", memory="1Gi"), Workload()),
        (sizes(memory=str(3 << 30)), Workload(0.0, 3072)),
    ],
)
def test_workloads(given: dict[str, str], expected: Workload) -> None:
    assert sizing.workload(given) == expected


def test_without_sizes_leaves_the_rest() -> None:
    assert sizing.without_sizes({**sizes(memory="1"), "mine": "2"}) == {"mine": "2"}
