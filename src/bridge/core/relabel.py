"""Volumes that ask for the container's SELinux label (``config.mounts[i].selinux_relabel``), and those that must never get one."""

from __future__ import annotations

import posixpath

from bridge.core import selinux
from bridge.core.making import Making
from bridge.errors import HostError, InvalidRequest, TimedOut
from bridge.host import relabel
from bridge.host.lookups import Found

SKIP_ANNOTATION = "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel"
"""On a pod, "true": a volume whose top is labelled right isn't walked (as CRI-O understands it)."""
_NEVER = frozenset(
    {
        *("/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/etc/ssl", "/home", "/lib", "/lib32", "/lib64"),
        *("/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log"),
        *("/var/run", "/var/tmp"),
    }
)
_NEVER_BELOW = ("/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")


def wanted(index: int, making: Making) -> str:
    """The label that config.mounts[index] is to get, "" for none."""
    if not making.config.mounts[index].selinux_relabel:
        return ""
    return selinux.relabels(making.sandbox, making.labels, making.config)


async def volume(found: Found, index: int, making: Making) -> None:
    """Relabel the volume, looked at with ``keep``, if it asks for it. Raises InvalidRequest, TimedOut, HostError naming the field."""
    label = wanted(index, making)
    if not label or found.fd is None:
        return
    field = f"config.mounts[{index}].selinux_relabel"
    for path in (making.config.mounts[index].host_path, found.path):
        if is_the_hosts(path):
            raise InvalidRequest(f"{path} belongs to the host and must keep its SELinux labels", field=field)
    trust = making.sandbox.config.annotations.get(SKIP_ANNOTATION) == "true"
    try:
        await relabel.tree(found.fd, label, found.path, timeout=making.settings.relabel_timeout, trust_top=trust)
    except TimedOut as exc:
        raise TimedOut(f"{field}: {found.path} was not relabelled within {making.settings.relabel_timeout:g} s") from exc
    except HostError as exc:
        raise HostError(f"{field}: {exc.message}", errno=exc.errno) from exc


def is_the_hosts(path: str) -> bool:
    """Whether ``path`` is a directory that the host's own services need with the labels they have: /, /etc, /usr and below, homes …"""
    name = posixpath.normpath("/" + path.lstrip("/"))
    parent = posixpath.dirname(name)
    return name in _NEVER or parent == "/home" or any(name.startswith(top + "/") for top in _NEVER_BELOW)
