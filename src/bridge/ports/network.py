"""The port to the pod network: what core asks of CNI.

Core journals the ``Attachment`` *before* ``add``; ``delete`` works from it alone, after any crash, also when ``add`` never
ran or ran half-way (field-notes §2-4). ``status`` answers from memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One host port of a pod. ``protocol`` is tcp, udp or sctp; ``host_ip`` "" means every address."""

    container_port: int
    host_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class PodNetworkRequest:
    """Facts of the pod that a network plugin may want. ``dns`` has servers, searches, options."""

    sandbox_id: str
    name: str
    namespace: str
    uid: str
    netns: Path
    cgroup_path: str = ""
    port_mappings: Sequence[PortMapping] = ()
    dns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attachment:
    """Everything a DEL needs, JSON-able, chosen before ADD: network name, the conf list used, netns, ifname, capability args."""

    network: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What ADD gave: ``ips`` (v4 and v6, first is the primary), and the attachment with the cached result inside."""

    ips: Sequence[str]
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """NetworkReady of CRI Status: when not ready, ``message`` says why in an operator's words."""

    ready: bool
    reason: str = ""
    message: str = ""


class Network(Protocol):
    """Pod networking."""

    def status(self) -> NetworkStatus: ...
    async def use_ranges(self, ranges: str) -> None:
        """The node's pod ranges are ``ranges``, separated by commas; "" tells none. Makes a network of them where it is to make one.

        Raises InvalidRequest (no ranges), ConfigError (the operator's template), HostError.
        """
        ...

    def plan(self, request: PodNetworkRequest) -> Attachment:
        """Choose the configuration, touching nothing. Raises Unavailable (why the network is not ready)."""
        ...

    async def add(self, attachment: Attachment) -> PodNetwork:
        """CNI ADD. On failure the caller deletes. Raises NetworkFailed with the plugin's own words."""
        ...

    async def check(self, attachment: Attachment) -> None: ...
    async def delete(self, attachment: Attachment) -> None:
        """CNI DEL; idempotent. Raises NetworkFailed; the caller retries later."""
        ...

    async def collect(self, keep: Sequence[Attachment]) -> None:
        """CNI GC (spec 1.1): drop every attachment of ours that is not in ``keep``. Plugins without GC are left alone."""
        ...
