"""OCI linux.resources objects."""

from __future__ import annotations

from bridge.host.oci_documents import at_start, merged


def test_limits_are_merged_key_by_key_and_page_by_page() -> None:
    old = {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}], "unified": {"a.b": "1"}}
    new = {"hugepageLimits": [{"pageSize": "2MB", "limit": 3}], "unified": {"c.d": "2"}}
    assert merged(old, new) == {
        "hugepageLimits": [{"pageSize": "2MB", "limit": 3}, {"pageSize": "1GB", "limit": 2}],
        "unified": {"a.b": "1", "c.d": "2"},
    }


def test_a_new_cgroup_is_not_told_that_it_has_no_quota() -> None:
    limited = {"linux": {"resources": {"cpu": {"shares": 10, "quota": 5000}}}}
    assert at_start({"linux": {"resources": {"cpu": {"quota": -1}, "memory": {"limit": 1}}}}) == {
        "linux": {"resources": {"memory": {"limit": 1}}}
    }
    assert at_start(limited) is limited
    assert at_start({}) == {}
