"""Which host ports exclude each other."""

from __future__ import annotations

import pytest

from bridge.core.hostports import mappings, overlap
from bridge.core.model import NamespaceMode, NamespaceOptions, PodConfig, PodMetadata, SandboxSecurity
from bridge.ports.network import PortMapping


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("", "", True),
        ("", "192.0.2.1", True),
        ("", "::1", True),
        ("", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("0.0.0.0", "::", False),
        ("0.0.0.0", "fd00::1", False),
        ("::", "fd00::1", True),
        ("0::0", "fd00::1", True),
        ("::", "192.0.2.1", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fd00::1", "fd00:0::0001", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_addresses(one: str, other: str, both: bool) -> None:
    first, second = PortMapping(80, 8080, "tcp", one), PortMapping(81, 8080, "tcp", other)
    assert overlap(first, second) is overlap(second, first) is both


def test_ports_and_protocols() -> None:
    one = PortMapping(80, 8080, "tcp")
    assert not overlap(one, PortMapping(80, 8081, "tcp"))
    assert not overlap(one, PortMapping(80, 8080, "udp"))


def test_what_takes_a_host_port() -> None:
    ports = (PortMapping(80, 0), PortMapping(81, 8081))
    own = PodConfig(PodMetadata("web", "u", "default"), port_mappings=ports)
    assert list(mappings(own)) == [(1, ports[1])]
    security = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE))
    assert list(mappings(PodConfig(own.metadata, port_mappings=ports, security=security))) == []
