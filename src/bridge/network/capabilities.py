"""What a pod tells its network plugins: capability arguments, CNI_ARGS, and the reading of bandwidth annotations. Pure.

Capabilities are conventions of CNI (CONVENTIONS.md). ``mac``, ``infinibandGUID``, ``deviceID`` and ``aliases`` have no source in
the CRI and are never sent: a pod must not choose its own link address through an annotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from bridge.errors import InvalidRequest
from bridge.ports.network import PodNetworkRequest

_INGRESS = "kubernetes.io/ingress-bandwidth"
_EGRESS = "kubernetes.io/egress-bandwidth"
_BURST = 2**31 - 1  # bits: "no burst limit", what kubelet and the peers send
_MIN_RATE, _MAX_RATE = 1000, 10**15  # bits per second; the limits of Kubernetes
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d{1,3}))?", re.ASCII)
_SCALE = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(10**3)}
_SCALE |= {prefix: Decimal(1000 ** (power + 2)) for power, prefix in enumerate("MGTPE")}
_SCALE |= {f"{prefix}i": Decimal(1024 ** (power + 1)) for power, prefix in enumerate("KMGTPE")}


def capability_arguments(request: PodNetworkRequest, pod_cidrs: Sequence[str] = ()) -> Mapping[str, Any]:
    """Every capability argument that we have for this pod; a plugin gets those that its configuration declares.

    ``pod_cidrs`` are the node's pod ranges, one a family. Raises InvalidRequest for a bad annotation.
    """
    arguments: dict[str, Any] = {}
    mappings = [
        {"hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol.lower(), "hostIP": port.host_ip}
        for port in request.port_mappings
        if port.host_port > 0
    ]
    if mappings:
        arguments["portMappings"] = mappings
    if bandwidth := _bandwidth(request.annotations):
        arguments["bandwidth"] = bandwidth
    if dns := {key: list(request.dns[key]) for key in ("servers", "searches", "options") if request.dns.get(key)}:
        arguments["dns"] = dns
    if pod_cidrs:
        arguments["ipRanges"] = [[{"subnet": cidr}] for cidr in pod_cidrs]
    if request.cgroup_path:
        arguments["cgroupPath"] = request.cgroup_path
    if request.annotations:
        # containerd's name: plugins written for it declare this capability
        arguments["io.kubernetes.cri.pod-annotations"] = dict(request.annotations)
    return arguments


def arguments_text(request: PodNetworkRequest) -> str:
    """CNI_ARGS as Kubernetes plugins expect them. Raises InvalidRequest where a value would smuggle in another argument."""
    pairs = {
        "IgnoreUnknown": ("1", ""),
        "K8S_POD_NAMESPACE": (request.namespace, "config.metadata.namespace"),
        "K8S_POD_NAME": (request.name, "config.metadata.name"),
        "K8S_POD_INFRA_CONTAINER_ID": (request.sandbox_id, ""),
        "K8S_POD_UID": (request.uid, "config.metadata.uid"),
    }
    for value, field in pairs.values():
        if set(value) & set(";=\0\n"):
            raise InvalidRequest(f"{value!r} can't be passed to network plugins: it holds ';', '=' or a control character", field=field)
    return ";".join(f"{key}={value}" for key, (value, _) in pairs.items())


def parse_quantity(text: str) -> Decimal:
    """A Kubernetes quantity (``10M``, ``1.5Gi``, ``2e6``). Raises ValueError."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 10M")
    number, suffix, exponent = match.groups()
    return Decimal(number) * (_SCALE[suffix] if suffix else Decimal(10) ** int(exponent or 0))


def _bandwidth(annotations: Mapping[str, str]) -> Mapping[str, int]:
    limits: dict[str, int] = {}
    for direction, key in (("ingress", _INGRESS), ("egress", _EGRESS)):
        text = annotations.get(key)
        if text is None:
            continue
        try:
            rate = parse_quantity(text)
        except ValueError as exc:
            raise InvalidRequest(str(exc), field=f"config.annotations[{key}]") from exc
        if not _MIN_RATE <= rate <= _MAX_RATE:
            raise InvalidRequest(f"{text!r} is not between 1k and 1P bits per second", field=f"config.annotations[{key}]")
        limits |= {f"{direction}Rate": int(rate), f"{direction}Burst": _BURST}
    return limits
