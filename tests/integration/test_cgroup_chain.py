"""Parents of a pod's cgroup that nobody made before are removed again, unless someone uses them."""

import os
from collections.abc import Iterator

import pytest

from bridge.host import cgroup_chain, cgroups

pytestmark = pytest.mark.root


@pytest.fixture
def top() -> Iterator[str]:
    name = f"/cri-bridge-chain-{os.getpid()}"
    yield name
    cgroups.remove(name)


def there(cgroup: str) -> bool:
    return any(directory.exists() for directory in cgroups.layout().directories(cgroup))


def test_all_that_was_made_is_removed(top: str) -> None:
    assert cgroup_chain.first_missing(f"{top}/a/b") == top
    cgroups.create(f"{top}/a/b")
    assert cgroup_chain.first_missing(f"{top}/a/b") == ""
    assert cgroup_chain.remove(f"{top}/a/b", top)
    assert not there(top)
    assert cgroup_chain.remove(f"{top}/a/b", top)


def test_what_others_use_stays(top: str) -> None:
    cgroups.create(f"{top}/a/b")
    cgroups.create(f"{top}/a/other")
    assert not cgroup_chain.remove(f"{top}/a/b", top)
    assert there(f"{top}/a/other")
    assert not there(f"{top}/a/b")


def test_what_was_there_before_stays(top: str) -> None:
    cgroups.create(top)
    assert cgroup_chain.first_missing(f"{top}/a/b") == f"{top}/a"
    cgroups.create(f"{top}/a/b")
    cgroup_chain.remove(f"{top}/a/b", f"{top}/a")
    assert there(top)
    assert not there(f"{top}/a")
