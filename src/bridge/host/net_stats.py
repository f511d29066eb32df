"""Counters of a network namespace's interfaces, from /proc/PID/net/dev: a pure parser, and a reader for pinned namespaces.

Source: proc_pid_net(5).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import BridgeError
from bridge.host import syscalls
from bridge.host.namespaces import in_own_thread, open_pin

_ROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface, as the pod sees it."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class NetworkStats:
    """All interfaces but the loopback, in the kernel's order; ``at_ns`` is Unix time."""

    at_ns: int
    interfaces: tuple[Interface, ...]


def parse(text: str) -> tuple[Interface, ...]:
    """Out of a net/dev file: two lines of headings, then "name: " with 8 numbers received and 8 sent."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        numbers = rest.split()
        if len(numbers) >= 12 and name.strip() != "lo":
            found.append(Interface(name.strip(), *map(int, (*numbers[:4], *numbers[8:12]))))
    return tuple(found)


async def read(namespaces: Mapping[str, Path]) -> Mapping[str, NetworkStats]:
    """The counters of each pinned network namespace, all read by one thread of its own. One that is gone is left out."""
    return await in_own_thread(lambda: read_in_this_thread(namespaces)) if namespaces else {}


def read_in_this_thread(namespaces: Mapping[str, Path]) -> Mapping[str, NetworkStats]:
    """The same, for a thread that ends with this work: it is left in one of the namespaces."""
    found: dict[str, NetworkStats] = {}
    for ident, pin in namespaces.items():
        with contextlib.suppress(BridgeError, OSError):  # a pod that is being stopped
            descriptor = open_pin(pin, "net")
            try:
                syscalls.setns(descriptor, syscalls.CLONE_NEWNET)
            finally:
                os.close(descriptor)
            found[ident] = NetworkStats(time.time_ns(), parse(_content("/proc/thread-self/net/dev")))
    return found


def _content(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _ROOM).decode()
    finally:
        os.close(descriptor)
