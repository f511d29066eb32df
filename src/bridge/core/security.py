"""Capabilities, masked and read-only paths: what a container may do, from what the pod asks and the host allows.

Why these defaults: docs/adr/0006-default-security.md. Sources: CRI v1 LinuxContainerSecurityContext, capabilities(7).
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.core.model import Capabilities, ContainerSecurity
from bridge.errors import Denied, InvalidRequest
from bridge.host.facts import CAPABILITIES, HostFacts

DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_KNOWN = frozenset(CAPABILITIES)
_CONTEXT = "config.linux.security_context"


def capabilities(request: ContainerSecurity, facts: HostFacts, default: Iterable[str] = DEFAULT_CAPABILITIES) -> dict[str, list[str]]:
    """The OCI capability sets (runtime spec, process.capabilities).

    Order as in containerd: start from the default, ALL in add or drop replaces it, then single names are added, then
    dropped. ALL means everything the server holds. A privileged container has all of that whatever is added or dropped (CRI:
    "all capabilities are added"). Inheritable stays empty (CVE-2022-24769) unless ambient capabilities are asked for, which
    the kernel requires to be inheritable too. Raises InvalidRequest for an unknown name, Denied for one that the server
    itself lacks.
    """
    wanted = request.capabilities or Capabilities()
    add = [_named(name, "add_capabilities", index) for index, name in enumerate(wanted.add)]
    drop = [_named(name, "drop_capabilities", index) for index, name in enumerate(wanted.drop)]
    ambient = [_named(name, "add_ambient_capabilities", index) for index, name in enumerate(wanted.add_ambient)]
    granted = set(facts.capabilities if request.privileged or "ALL" in add else facts.capabilities & frozenset(default))
    if "ALL" in drop and not request.privileged:
        granted.clear()
    elif "ALL" in ambient:
        granted |= facts.capabilities
    for field, names in (("add_capabilities", add), ("add_ambient_capabilities", ambient)):
        if not request.privileged:
            _require(names, facts, field)
            granted.update(names)
    granted -= {"ALL"} if request.privileged else {"ALL", *drop}
    held = sorted(granted)
    raised = sorted(granted if "ALL" in ambient else granted & set(ambient))
    return {"bounding": held, "effective": held, "permitted": held, "inheritable": raised, "ambient": raised}


def no_capabilities() -> dict[str, list[str]]:
    """Empty sets: the sandbox container and whoever else needs none."""
    return {"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []}


def _named(name: str, field: str, index: int) -> str:
    plain = name.upper()
    if plain in ("ALL", "CAP_ALL"):
        return "ALL"
    full = plain if plain.startswith("CAP_") else f"CAP_{plain}"
    if full not in _KNOWN:
        raise InvalidRequest(f"unknown capability {name!r}", field=f"{_CONTEXT}.capabilities.{field}[{index}]")
    return full


def _require(names: Iterable[str], facts: HostFacts, field: str) -> None:
    missing = sorted(set(names) - facts.capabilities - {"ALL"})
    if missing:
        raise Denied(f"{_CONTEXT}.capabilities.{field}: the server itself doesn't hold {', '.join(missing)}")


def hidden_paths(request: ContainerSecurity, *, user_namespace: bool = False) -> tuple[list[str], list[str]]:
    """Masked and read-only paths: the request's where it gives some, else the defaults; none when privileged.

    An empty list can't be told from an absent one on the wire. In a user namespace it means none: a kubelet sends the
    defaults for procMount Default, and empty lists for procMount Unmasked, which it allows to no other pods. Elsewhere it
    means the defaults, so that a client that doesn't know of the lists runs nothing unprotected by omission.
    """
    if request.privileged:
        return [], []
    for field, paths in (("masked_paths", request.masked_paths), ("readonly_paths", request.readonly_paths)):
        for index, path in enumerate(paths):
            if not path.startswith("/") or "\0" in path:
                raise InvalidRequest(f"{path!r} is not an absolute path", field=f"{_CONTEXT}.{field}[{index}]")
    masked, readonly = ((), ()) if user_namespace else (MASKED_PATHS, READONLY_PATHS)
    return list(request.masked_paths or masked), list(request.readonly_paths or readonly)
