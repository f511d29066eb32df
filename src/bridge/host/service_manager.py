"""The service manager that started this process, systemd for most: what it is told, and the descriptors that it keeps for the next start.

Its variables are taken out of the environment at once: a runtime that finds NOTIFY_SOCKET believes that its container is the service.
Without a service manager everything here does nothing.
Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.service(5) FileDescriptorStoreMax=.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from bridge import log

_logger = log.get("service")
_FIRST = 3
_SEND_SECONDS = 2.0
_TAKEN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE")


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """``address`` is its socket, "" for none; ``watchdog`` the seconds within which it wants a sign of life, 0 for never.

    ``capacity`` is how many descriptors it keeps, ``kept`` those that an earlier process gave it, by name; they are the caller's now.
    """

    address: str = ""
    watchdog: float = 0.0
    capacity: int = 0
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """What the variables say, which are gone from ``environment`` afterwards; those that are for another process count as unset."""
        found = {name: environment.pop(name, "") for name in _TAKEN}
        mine = found["WATCHDOG_PID"] in ("", str(os.getpid()))
        watchdog = _number(found["WATCHDOG_USEC"]) / 1e6 if mine else 0.0
        kept = _descriptors(found) if found["LISTEN_PID"] == str(os.getpid()) else {}
        return cls(found["NOTIFY_SOCKET"], watchdog, _number(found["FDSTORE"]), kept)

    def announce(self, *lines: str) -> None:
        """Tell it; what it can't be told is logged. Blocks for at most a few seconds, of which a manager that lives takes none."""
        self.send(lines)

    def send(self, lines: Sequence[str], fds: Sequence[int] = ()) -> bool:
        """``announce`` with descriptors, which stay the caller's. Returns whether it was taken."""
        if not self.address:
            return False
        target = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendmsg(["\n".join(lines).encode()], rights, 0, target)
        except OSError as exc:  # of no descriptor left as well
            _logger.warning("the service manager can't be told %s: %s", lines[0], exc)
            return False
        return True


def reloading() -> tuple[str, str]:
    """What announces that the configuration is read again; READY=1 ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def _descriptors(found: Mapping[str, str]) -> dict[str, list[int]]:
    names = found["LISTEN_FDNAMES"].split(":")
    kept: dict[str, list[int]] = {}
    for number in range(_number(found["LISTEN_FDS"])):
        with contextlib.suppress(OSError):  # one that is not open
            os.set_inheritable(_FIRST + number, False)
            kept.setdefault(names[number] if number < len(names) else "", []).append(_FIRST + number)
    return kept


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
