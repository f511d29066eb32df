"""What the pytest plugin calls while the suite runs; for whoever wants to follow it."""

from __future__ import annotations

import pytest

from bridge.testing.conformance.results import Report, Result
from bridge.testing.conformance.target import Target

TARGET: pytest.StashKey[Target] = pytest.StashKey()
"""What is tested, where a program that runs pytest says."""


@pytest.hookspec
def pytest_conformance_result(result: Result) -> None:
    """A spec has ended."""


@pytest.hookspec
def pytest_conformance_report(report: Report) -> None:
    """All specs have ended, and so has the server."""
