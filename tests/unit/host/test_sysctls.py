"""Which sysctls a pod may set, by key alone."""

from __future__ import annotations

import pytest

from bridge.errors import InvalidRequest
from bridge.host.sysctls import check, namespace_of, parse_key

ALL = ("net", "ipc", "uts")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("kernel.shmmax", "kernel/shmmax"),
    ],
)
def test_both_notations(key: str, path: str) -> None:
    assert "/".join(parse_key(key)) == path


MALFORMED = ["", ".", "/", "net", "net..x", "net.", ".net.x", "net/../kernel/core_pattern", "net/./x", "net//x", "/net/x", "net/a\0b"]


@pytest.mark.parametrize("key", MALFORMED)
def test_malformed_keys_are_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_key(key)
    assert caught.value.field == f"config.linux.sysctls[{key}]"


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("net.core.somaxconn", "net"),
        ("net.ipv6.conf.all.disable_ipv6", "net"),
        ("kernel.shm_rmid_forced", "ipc"),
        ("kernel.msgmax", "ipc"),
        ("kernel.sem", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.domainname", "uts"),
        ("kernel.core_pattern", None),
        ("kernel.hostname", None),
        ("kernel.shmxyz", None),
        ("kernel.sem.x", None),
        ("fs.file-max", None),
        ("fs.mqueue.a.b", None),
        ("vm.swappiness", None),
        ("user.max_user_namespaces", None),
    ],
)
def test_namespace_of(key: str, namespace: str | None) -> None:
    assert namespace_of(parse_key(key)) == namespace


def test_a_host_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"config\.linux\.sysctls\[vm\.swappiness\].*whole host"):
        check({"net.core.somaxconn": "1", "vm.swappiness": "1"}, ALL)


@pytest.mark.parametrize(("key", "missing"), [("net.core.somaxconn", "net"), ("kernel.sem", "ipc"), ("kernel.domainname", "uts")])
def test_a_key_of_a_namespace_shared_with_the_host_is_refused(key: str, missing: str) -> None:
    with pytest.raises(InvalidRequest, match=f"own {missing} namespace"):
        check({key: "1"}, [name for name in ALL if name != missing])


@pytest.mark.parametrize(
    ("key", "late"),
    [
        ("net.ipv4.conf.eth0.rp_filter", True),
        ("net/ipv6/neigh/eth0.5/retrans_time_ms", True),
        ("net.ipv4.conf.all.rp_filter", False),
        ("net.ipv6.conf.default.accept_ra", False),
        ("net.ipv6.conf.lo.disable_ipv6", False),
        ("net.ipv4.ip_forward", False),
    ],
)
def test_keys_of_one_interface_wait_for_it(key: str, *, late: bool) -> None:
    assert check({key: "1"}, ALL)[0].names_interface is late


@pytest.mark.parametrize("value", ["", "1\n2", "1\0", "1\r", "\N{LATIN SMALL LETTER E WITH ACUTE}", "1" * 1025])
def test_a_value_is_one_short_line(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check({"net.ipv4.ip_forward": value}, ALL)
    assert caught.value.field == "config.linux.sysctls[net.ipv4.ip_forward]"


def test_values_with_spaces_and_tabs_are_lists() -> None:
    assert [item.value for item in check({"kernel.sem": "1 2\t3 4"}, ALL)] == ["1 2\t3 4"]


def test_one_setting_in_two_notations_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"same setting as net\.ipv4\.ip_forward"):
        check({"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}, ALL)


@pytest.mark.parametrize(
    ("key", "value"), [("kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"), ("net.ipv4.ip_forward", "1\nkernel.core_pattern=|/evil")]
)
def test_cve_2022_0811_nothing_rides_on_a_sysctl(key: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check({key: value}, ALL)
    assert caught.value.field == f"config.linux.sysctls[{key}]"


def test_cve_2022_0811_a_plus_separates_nothing() -> None:
    (item,) = check({"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/evil"}, ALL)
    assert str(item.path) == "/proc/sys/kernel/shm_rmid_forced", "one file, whatever the value; the kernel then refuses what is no number"
