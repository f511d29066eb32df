"""What every suite shares: tests marked ``root`` are skipped for other users, crun's needs on hybrid hosts, the leak audit."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bridge.testing.hierarchies import hugetlb_for_crun
from bridge.testing.leaks import Scope, Snapshot, settle, snapshot


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuts", default="", help='how many moments test_images_power_cut tries, or "all"')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: real namespaces, mounts and cgroups")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def crun_hierarchy() -> Iterator[None]:
    """Makes crun usable on a host whose v1 hierarchies lack hugetlb; undone at the end of the session."""
    with hugetlb_for_crun():
        yield


class LeakAudit:
    """Watches scopes that a test names; at its end everything new in them is a failure."""

    def __init__(self) -> None:
        self._watched: list[tuple[Scope, Snapshot]] = []

    def watch(self, scope: Scope) -> None:
        """From now on, what appears in ``scope`` must be gone when the test ends."""
        self._watched.append((scope, snapshot(scope)))

    def leaks(self) -> list[str]:
        """What is left, after a moment for the kernel to finish."""
        return [line for scope, before in self._watched for line in settle(scope, before)]


@pytest.fixture
def leak_audit() -> Iterator[LeakAudit]:
    """A LeakAudit whose verdict is given once every fixture that was set up after it is gone."""
    audit = LeakAudit()
    yield audit
    left = audit.leaks()
    assert not left, "left behind:\n" + "\n".join(left)
