"""Host ports: no two pods hold the same one. What a pod holds follows from its record, so it is right after a restart too.

The CNI plugins don't look: with two mappings of one port the older one takes all, and the younger pod is never reached.
Pods in the host's network are left out: their ports are declarations, and the kernel refuses the second listener by itself.
Source: CRI v1 PortMapping.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bridge.core.entities import Sandbox, SandboxState
from bridge.core.model import NamespaceMode, PodConfig
from bridge.core.store import Store
from bridge.errors import AlreadyExists, InvalidRequest
from bridge.ports.network import PortMapping

_FAMILIES = frozenset((4, 6))


class HostPorts:
    """Claims of host ports, checked against every pod of the store and against those whose record is being written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking: dict[str, PodConfig] = {}

    @contextmanager
    def claimed(self, ident: str, config: PodConfig) -> Iterator[None]:
        """Hold the ports that ``config`` asks for while the record is being journaled; from then on the record holds them.

        Raises AlreadyExists naming the pod that has one of them, InvalidRequest when the pod asks for one twice.
        """
        wanted = dict(mappings(config))
        _check_itself(wanted)
        if wanted:
            self._check_others(wanted)
            self._asking[ident] = config
        try:
            yield
        finally:
            self._asking.pop(ident, None)

    def _check_others(self, wanted: Mapping[int, PortMapping]) -> None:
        for ident, config in self._holders():
            for held in dict(mappings(config)).values():
                for index, mapping in wanted.items():
                    if overlap(held, mapping):
                        meta = config.metadata
                        theirs = "" if _words(held) == _words(mapping) else f" as {_words(held)}"
                        raise AlreadyExists(
                            f"config.port_mappings[{index}].host_port: {_words(mapping)} belongs to pod "
                            f"{meta.namespace}/{meta.name} (sandbox {ident[:13]}){theirs}"
                        )

    def _holders(self) -> Iterator[tuple[str, PodConfig]]:
        yield from self._asking.items()
        for sandbox in self._store.sandboxes.values():
            if sandbox.config.port_mappings and _holds(sandbox):
                yield sandbox.id, sandbox.config


def mappings(config: PodConfig) -> Iterator[tuple[int, PortMapping]]:
    """The port mappings that take a host port, with their index in the request; none in the host's network."""
    if config.security.namespaces.network is not NamespaceMode.NODE:
        yield from ((index, each) for index, each in enumerate(config.port_mappings) if each.host_port)


def overlap(one: PortMapping, other: PortMapping) -> bool:
    """Whether some packet would belong to both. An empty address is every one of both families, 0.0.0.0 and :: of theirs."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    first, second = _place(one.host_ip), _place(other.host_ip)
    return bool(first[0] & second[0]) and (first[1] is None or second[1] is None or first[1] == second[1])


def _check_itself(wanted: Mapping[int, PortMapping]) -> None:
    seen: dict[int, PortMapping] = {}
    for index, mapping in wanted.items():
        for earlier, other in seen.items():
            if overlap(mapping, other) and mapping.container_port != other.container_port:
                why = f"{_words(mapping)} leads to container port {mapping.container_port}, but port_mappings[{earlier}] already leads it"
                raise InvalidRequest(f"{why} to {other.container_port}", field=f"config.port_mappings[{index}].host_port")
        seen[index] = mapping


def _holds(sandbox: Sandbox) -> bool:
    """Until StopPodSandbox has taken it off the network, also when it died before."""
    return sandbox.state in (SandboxState.CREATING, SandboxState.READY) or sandbox.attachment is not None


def _place(host_ip: str) -> tuple[frozenset[int], ipaddress.IPv4Address | ipaddress.IPv6Address | None]:
    """The families that an address is of, and the address; None is every one of those families."""
    if not host_ip:
        return _FAMILIES, None
    address = ipaddress.ip_address(host_ip)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return frozenset((address.version,)), None if address.is_unspecified else address


def _words(mapping: PortMapping) -> str:
    place = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip or "every address"
    return f"{mapping.protocol} port {mapping.host_port} on {place}"
