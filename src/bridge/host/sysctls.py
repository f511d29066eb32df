"""Sysctls of a pod: which keys may be set at all, in which namespace each one lives, and writing them.

Only namespaced keys pass; anything else would change the whole host. ``net.*`` belongs to the network namespace (the
kernel hides or write-protects there what isn't namespaced); of ``kernel.*`` and ``fs.*`` only the exact keys below are
per IPC or UTS namespace. Classification is pure; ``write`` acts on the namespaces of the calling thread.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import HostError, InvalidRequest

# ipc/ipc_sysctl.c registers these per IPC namespace; fs/mqueue's are all per IPC namespace (ipc/mq_sysctl.c).
_IPC_KERNEL_KEYS = frozenset({
    "auto_msgmni", "msg_next_id", "msgmax", "msgmnb", "msgmni", "sem", "sem_next_id",
    "shm_next_id", "shm_rmid_forced", "shmall", "shmmax", "shmmni",
})  # fmt: skip
# Directories of net/ that have one sub-directory a network interface, and its pseudo-interfaces.
_PER_INTERFACE = {("ipv4", "conf"), ("ipv4", "neigh"), ("ipv6", "conf"), ("ipv6", "neigh"), ("mpls", "conf")}
_VALUE_MAX = 1024  # no namespaced setting comes near
_NOT_AN_INTERFACE = {"all", "default", "lo"}


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One checked setting. ``key`` is as the user wrote it, ``parts`` its path below /proc/sys."""

    key: str
    parts: tuple[str, ...]
    value: str
    namespace: str

    @property
    def path(self) -> Path:
        """Its file, as the namespaces of whoever opens it show it."""
        return Path("/proc/sys", *self.parts)

    @property
    def names_interface(self) -> bool:
        """Whether it belongs to one interface, which exists only after the network plugins ran."""
        return len(self.parts) > 4 and self.parts[1:3] in _PER_INTERFACE and self.parts[3] not in _NOT_AN_INTERFACE


def parse_key(key: str) -> tuple[str, ...]:
    """Path components of ``key``, whose first separator decides the notation, as in sysctl(8).

    ``net.ipv4.conf.eth0/100.rp_filter`` and ``net/ipv4/conf/eth0.100/rp_filter`` are the same. Raises InvalidRequest.
    """
    dot, slash = key.find("."), key.find("/")
    dotted = dot != -1 and (slash == -1 or dot < slash)
    parts = tuple((key.translate(str.maketrans("./", "/.")) if dotted else key).split("/"))
    if len(parts) < 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InvalidRequest("is not the name of a sysctl", field=field_of(key))
    return parts


def namespace_of(parts: Sequence[str]) -> str | None:
    """``"net"``, ``"ipc"`` or ``"uts"``; None for a key of the whole host."""
    match parts:
        case ("net", _, *_):
            return "net"
        case ("kernel", name) if name in _IPC_KERNEL_KEYS:
            return "ipc"
        case ("fs", "mqueue", _):
            return "ipc"
        case ("kernel", "domainname"):
            return "uts"
    return None


def check(sysctls: Mapping[str, str], held: Collection[str]) -> Sequence[Sysctl]:
    """Check every key against the namespaces that the pod has of its own (``held``: of net, ipc, uts).

    Raises InvalidRequest naming the first key that is malformed, not namespaced, of a namespace shared with the host, given in
    two notations, or whose value is not one short line.
    """
    checked: list[Sysctl] = []
    for key, value in sysctls.items():
        parts = parse_key(key)
        _check_value(key, value)
        twin = next((other.key for other in checked if other.parts == parts), None)
        if twin is not None:
            raise InvalidRequest(f"is the same setting as {twin}", field=field_of(key))
        namespace = namespace_of(parts)
        if namespace is None:
            raise InvalidRequest("is a setting of the whole host, not of a pod's namespace", field=field_of(key))
        if namespace not in held:
            raise InvalidRequest(f"needs the pod's own {namespace} namespace, but the pod uses the host's", field=field_of(key))
        checked.append(Sysctl(key, parts, value, namespace))
    return checked


def _check_value(key: str, value: str) -> None:
    """One line that no kernel file or runtime can take for two (CVE-2022-0811 rode on a value)."""
    if not value or len(value) > _VALUE_MAX:
        raise InvalidRequest(f"needs a value of 1 to {_VALUE_MAX} characters", field=field_of(key))
    if not all(" " <= character <= "~" or character == "\t" for character in value):
        raise InvalidRequest(f"the value {value!r} is not one line of printable ASCII", field=field_of(key))


def write(sysctl: Sysctl) -> None:
    """Write it for the calling thread's namespaces. InvalidRequest for an unknown key or a refused value, else HostError."""
    try:
        sysctl.path.write_text(sysctl.value)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise InvalidRequest("this kernel has no such sysctl in the pod's namespaces", field=field_of(sysctl.key)) from exc
        if exc.errno in (errno.EINVAL, errno.ERANGE, errno.EOVERFLOW):
            raise InvalidRequest(f"the kernel refuses the value {sysctl.value!r}", field=field_of(sysctl.key)) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EISDIR):
            raise InvalidRequest("can't be set from a pod's namespaces", field=field_of(sysctl.key)) from exc
        raise HostError(f"sysctl {sysctl.key}: {exc.strerror}", errno=exc.errno) from exc


def field_of(key: str) -> str:
    """The CRI field of a setting."""
    return f"config.linux.sysctls[{key}]"
