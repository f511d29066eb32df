"""hostname, hosts and resolv.conf of a pod: what is written, and what is refused before anything is."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from bridge.core import podfiles
from bridge.core.entities import Sandbox
from bridge.core.model import DNSConfig, NamespaceMode, NamespaceOptions, PodConfig, SandboxSecurity
from bridge.errors import InvalidRequest
from tests.unit.core.spec_cases import sandbox

STUB = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"
UPLINKS = "nameserver 192.0.2.1\nsearch example.org\n"


def pod(hostname: str = "web", *, network: NamespaceMode = NamespaceMode.POD, dns: DNSConfig | None = None) -> PodConfig:
    security = SandboxSecurity(namespaces=NamespaceOptions(network=network))
    return PodConfig(sandbox().config.metadata, hostname=hostname, dns=dns, security=security)


def made(config: PodConfig) -> Sandbox:
    return dataclasses.replace(sandbox(), config=config, hostname=podfiles.hostname(config), ips=("10.0.0.2", "fd00::2"))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with files of its own; resolved's is not there."""
    for name, attribute in (("resolv.conf", "HOST_RESOLV_CONF"), ("uplinks", "RESOLVED_UPLINKS"), ("hosts", "HOST_HOSTS")):
        monkeypatch.setattr(podfiles, attribute, tmp_path / name)
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n192.0.2.7 node7\n")
    return tmp_path


def test_resolv_conf() -> None:
    dns = DNSConfig(("10.0.0.10", "fd00::a"), ("default.svc", "svc"), ("ndots:5",))
    assert podfiles.resolv_conf(dns, "host") == "search default.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
    assert podfiles.resolv_conf(None, "host") == "host"
    assert podfiles.resolv_conf(DNSConfig(), "host") == "host"
    assert podfiles.resolv_conf(DNSConfig(searches=(".",)), "host") == "search .\n"


@pytest.mark.parametrize("field", ["servers", "searches", "options"])
@pytest.mark.parametrize("value", ["a\nnameserver 6.6.6.6", "", "a b", "a\x00", "a\u2028b"])
def test_a_dns_value_can_not_bring_a_line_of_its_own(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^config\.dns_config\.{field}\[1\]: {re.escape(repr(value))} must be one word"):
        podfiles.check(pod(dns=DNSConfig(**{field: ("ok", value)})))


def test_values_that_only_look_odd_pass() -> None:
    podfiles.check(pod(dns=DNSConfig(("fe80::1%eth0",), (".", "_tcp.example"), ("ndots:5", "edns0"))))


def test_hosts() -> None:
    own = podfiles.hosts("web", ("10.0.0.2", "fd00::2"), host_text=None)
    assert "127.0.0.1\tlocalhost\n" in own
    assert own.endswith("10.0.0.2\tweb\nfd00::2\tweb\n")
    assert podfiles.hosts("web", ("10.0.0.2",), host_text="the host's\n") == "the host's\n"
    assert podfiles.hosts("web.shop.svc", ("10.0.0.2",), host_text=None).endswith("10.0.0.2\tweb.shop.svc\tweb\n")


@pytest.mark.parametrize("hostname", ["x" * 65, "ä" * 33, "a b", "a\nb", "a\x00"])
def test_bad_hostnames(hostname: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^config\.hostname"):
        podfiles.check(pod(hostname))


def test_hostnames_of_64_bytes_fit() -> None:
    podfiles.check(pod("x" * 64))


def test_the_hostname_is_the_hosts_where_the_namespace_is_and_where_none_is_asked_for() -> None:
    node = os.uname().nodename
    assert podfiles.hostname(pod("web-0")) == "web-0"
    assert podfiles.hostname(pod("")) == node
    assert podfiles.hostname(pod("web-0", network=NamespaceMode.NODE)) == node


async def test_files_of_a_pod(host: Path) -> None:
    files = await podfiles.read(made(pod("web-0", dns=DNSConfig(("10.0.0.10",)))))
    assert files["hostname"] == "web-0\n"
    assert files["hosts"].endswith("10.0.0.2\tweb-0\nfd00::2\tweb-0\n")
    assert files["resolv.conf"] == "nameserver 10.0.0.10\n"


async def test_files_of_a_pod_in_the_hosts_network(host: Path) -> None:
    files = await podfiles.read(made(pod("web-0", network=NamespaceMode.NODE)))
    assert files["hostname"] == os.uname().nodename + "\n"
    assert files["hosts"] == (host / "hosts").read_text()
    assert files["resolv.conf"] == "nameserver 192.0.2.53\n"


async def test_dns_of_a_host_with_systemd_resolved(host: Path) -> None:
    (host / "resolv.conf").write_text(STUB)
    own, shared = made(pod()), made(pod(network=NamespaceMode.NODE))
    assert (await podfiles.read(own))["resolv.conf"] == STUB, "no better file: at least the search domains are right"
    (host / "uplinks").write_text(UPLINKS)
    assert (await podfiles.read(own))["resolv.conf"] == UPLINKS
    assert (await podfiles.read(shared))["resolv.conf"] == STUB, "the stub answers in the host's network"
    assert (await podfiles.read(made(pod(dns=DNSConfig(("127.0.0.1",))))))["resolv.conf"] == "nameserver 127.0.0.1\n", "asked for"


@pytest.mark.parametrize(
    ("text", "local"),
    [
        (STUB, True),
        ("nameserver ::1\nnameserver 127.0.0.1\n", True),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", False),
        ("search example.org\nnameserver\n", False),
        ("nameserver dns.example\n", False),
        ("#nameserver 127.0.0.1\n", False),
    ],
)
def test_only_local_servers(text: str, local: bool) -> None:
    assert podfiles.only_local_servers(text) is local


async def test_a_host_without_any_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute in ("HOST_RESOLV_CONF", "RESOLVED_UPLINKS", "HOST_HOSTS"):
        monkeypatch.setattr(podfiles, attribute, tmp_path / "absent")
    files = await podfiles.read(made(pod(network=NamespaceMode.NODE)))
    assert (files["resolv.conf"], files["hosts"]) == ("", "")
