"""The borrowed hugetlb hierarchy: mounted where it is absent, gone afterwards, untouched where it exists."""

import pytest

from bridge.host import cgroups, syscalls
from bridge.host.cgroup_paths import parse_mountinfo
from bridge.testing import hierarchies
from bridge.testing.hierarchies import hugetlb_for_crun


@pytest.mark.root
def test_hugetlb_is_there_while_borrowed(caplog: pytest.LogCaptureFixture) -> None:
    cgroups.layout.cache_clear()
    before = cgroups.layout().mounts
    with hugetlb_for_crun() as borrowed:
        now = cgroups.layout().mounts
        assert ("hugetlb" in now) or "memory" not in now
        assert borrowed == (dict(now) != dict(before))
    assert cgroups.layout().mounts == before or "another process uses it" in caplog.text


@pytest.mark.root
def test_whoever_found_it_keeps_it() -> None:
    with hugetlb_for_crun() as borrowed:
        there = "hugetlb" in cgroups.layout().mounts
        with hugetlb_for_crun() as again:
            assert not again
            if borrowed:
                with pytest.raises(OSError, match="busy"):
                    syscalls.umount(cgroups.layout().mounts["hugetlb"].point)
        assert there == ("hugetlb" in cgroups.layout().mounts)


def test_nothing_is_done_on_cgroup_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    v2 = parse_mountinfo("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    read = lambda: v2  # noqa: E731
    read.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(hierarchies, "layout", read)
    with hugetlb_for_crun() as borrowed:
        assert borrowed is False
