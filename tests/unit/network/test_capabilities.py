"""What plugins are told of a pod."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import InvalidRequest
from bridge.network.capabilities import arguments_text, capability_arguments, parse_quantity
from bridge.ports.network import PodNetworkRequest, PortMapping


def pod(**changes: Any) -> PodNetworkRequest:
    facts: dict[str, Any] = {"sandbox_id": "abc", "name": "web-0", "namespace": "shop", "uid": "u-1", "netns": Path("/run/ns"), **changes}
    return PodNetworkRequest(**facts)


def test_nothing_to_tell() -> None:
    assert capability_arguments(pod()) == {}


def test_port_mappings_without_host_port_are_not_for_the_network() -> None:
    ports = (PortMapping(80, 8080), PortMapping(53, 53, "UDP", "10.0.0.1"), PortMapping(90, 0))
    assert capability_arguments(pod(port_mappings=ports)) == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
        ]
    }
    assert capability_arguments(pod(port_mappings=ports[2:])) == {}


def test_bandwidth_annotations() -> None:
    notes = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi", "other": "x"}
    arguments = capability_arguments(pod(annotations=notes))
    burst = 2**31 - 1
    assert arguments["bandwidth"] == {"ingressRate": 10_000_000, "ingressBurst": burst, "egressRate": 1024**3, "egressBurst": burst}
    assert arguments["io.kubernetes.cri.pod-annotations"] == notes
    least = capability_arguments(pod(annotations={"kubernetes.io/egress-bandwidth": "1k"}))
    assert least["bandwidth"] == {"egressRate": 1000, "egressBurst": burst}


@pytest.mark.parametrize("value", ["fast", "", "-1M", "999", "1001P", "1E", "10MB"])
def test_bad_bandwidth_names_the_annotation(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        capability_arguments(pod(annotations={"kubernetes.io/ingress-bandwidth": value}))
    assert caught.value.field == "config.annotations[kubernetes.io/ingress-bandwidth]"


def test_dns_ranges_and_cgroup() -> None:
    dns = {"servers": ("10.0.0.10",), "searches": ["svc"], "options": ()}
    assert capability_arguments(pod(dns=dns, cgroup_path="/kubepods/x"), ["10.1.0.0/24", "fd00::/64"]) == {
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc"]},
        "cgroupPath": "/kubepods/x",
        "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }


def test_cni_args() -> None:
    expected = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
    assert arguments_text(pod()) == expected


@pytest.mark.parametrize(("field", "value"), [("name", "x;IP=10.0.0.9"), ("namespace", "a=b"), ("uid", "a\nb"), ("name", "a\0b")])
def test_no_argument_can_be_smuggled_in(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arguments_text(pod(**{field: value}))
    assert caught.value.field == f"config.metadata.{field}"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", "1"), ("1.5", "1.5"), (".5k", "500"), ("10M", "10000000"), ("1Gi", "1073741824"), ("2e6", "2000000"), ("2E6", "2000000"),
     ("1E", "1000000000000000000"), ("1Ei", "1152921504606846976"), ("100m", "0.1"), ("1P", "1000000000000000"), (" 5G ", "5000000000")],
)  # fmt: skip
def test_quantities(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "M", "1 M", "1mi", "1K", "0x10", "1e", "1e9999", "٣"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
