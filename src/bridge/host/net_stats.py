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


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface, as the pod sees it."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int


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
        if len(numbers) >= 11 and name.strip() != "lo":
            found.append(Interface(name.strip(), int(numbers[0]), int(numbers[2]), int(numbers[8]), int(numbers[10])))
    return tuple(found)


async def read(namespaces: Mapping[str, Path]) -> Mapping[str, NetworkStats]:
    """The counters of each pinned network namespace, all read by one thread of its own. One that is gone is left out."""
    return await in_own_thread(lambda: _read_all(namespaces)) if namespaces else {}


def _read_all(namespaces: Mapping[str, Path]) -> Mapping[str, NetworkStats]:
    found: dict[str, NetworkStats] = {}
    for ident, pin in namespaces.items():
        with contextlib.suppress(BridgeError, OSError):  # a pod that is being stopped
            descriptor = open_pin(pin, "net")
            try:
                syscalls.setns(descriptor, syscalls.CLONE_NEWNET)  # the thread ends with this work: there is no way back to find
            finally:
                os.close(descriptor)
            found[ident] = NetworkStats(time.time_ns(), parse(Path("/proc/thread-self/net/dev").read_text()))
    return found
