"""What a shim's binary says of itself at its start: the address of the shim, in each of the forms that were ever printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge._proto.containerd.runtime.bootstrap.v1 import BootstrapResult
from bridge.errors import CorruptData, NotFound, Unsupported
from bridge.shimv2.addresses import socket_name
from bridge.shimv2.encoding import decode

TASK_SERVICES: Final = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}
"""Full names of the task service by version; methods and messages are the same."""
_ADDRESS_FILES: Final = ("bootstrap.json", "address")


@dataclass(frozen=True, slots=True)
class ShimAddress:
    """Where a shim listens (see ``addresses``), and the ``version`` of the task service that it speaks: 2 or 3."""

    address: str
    version: int = 2

    @property
    def task_service(self) -> str:
        """Full name of its task service."""
        return TASK_SERVICES[self.version]


def parse_start(output: bytes) -> ShimAddress:
    """What ``output``, the stdout of the verb "start", says: plain text, JSON (containerd 1.7 and later), or an encoded message (2.3).

    Raises CorruptData for what is none of them, Unsupported for a version, protocol or kind of address that can't be used.
    """
    text = output.strip()
    if text.startswith(b"{"):
        version, address, protocol = _from_json(text)
    elif _is_plain(text):
        version, address, protocol = 2, text.decode(), "ttrpc"
    else:
        result = decode(BootstrapResult, output)
        version, address, protocol = result.version, result.address, result.protocol
    if not address:
        raise CorruptData(f"the shim's start printed no address: {output[:200]!r}")
    if version not in TASK_SERVICES:
        raise Unsupported(f"the shim speaks version {version} of the task service; known are 2 and 3")
    if protocol.lower() != "ttrpc":
        raise Unsupported(f"the shim speaks {protocol!r}; only ttrpc is spoken here")
    socket_name(address)  # refused here, where its start can still be undone
    return ShimAddress(address, version)


def _is_plain(text: bytes) -> bool:
    """An encoded message begins with a tag and a length or number, none of which any printable address has in these places."""
    return text.isascii() and text.decode().isprintable()


def _from_json(text: bytes) -> tuple[int, str, str]:
    try:
        found: Any = json.loads(text)
    except ValueError as exc:
        raise CorruptData(f"the shim's start printed no JSON: {text[:200]!r}") from exc
    version, address, protocol = found.get("version", 2), found.get("address", ""), found.get("protocol") or "ttrpc"
    if not (isinstance(version, int) and isinstance(address, str) and isinstance(protocol, str)):
        raise CorruptData(f"the shim's start printed {text[:200]!r}")
    return version, address, protocol


def read_address(bundle: Path) -> ShimAddress:
    """Where the shim of ``bundle`` listens, from the files that it left there. Raises NotFound without one; else as ``parse_start``."""
    for name in _ADDRESS_FILES:
        try:
            text = (bundle / name).read_bytes()
        except FileNotFoundError:
            continue
        if text.strip():
            return parse_start(text)
    raise NotFound(f"{bundle} has no address of a shim")
