"""Places in a container where a volume would get in the way of what the runtime itself does there.

Before a container's process runs, its runtime writes to files of its /proc (labels, sysctls, ids) and binds its /dev/null over
masked paths and its /dev/pts over the console. A volume in such a place lets whoever owns the volume choose what is written or
unmasked, and not every runtime refuses it (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2025-31133, CVE-2025-52565,
CVE-2025-52881).
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.core.model import ContainerConfig
from bridge.errors import InvalidRequest
from bridge.host import mounts, rootfs, rootfs_dirs
from bridge.host.lookups import Found

_WITHIN_PROC = frozenset(
    f"/proc/{name}"
    for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime", "net/dev", "sys/crypto/fips_enabled")
)
"""What programs such as lxcfs mount over, and runtimes allow: they tell of the machine and set nothing."""
_KINDS = {"/dev": ("devtmpfs",), "/proc": ("proc",)}


def check(config: ContainerConfig) -> None:
    """Refuse volumes in places where the request alone shows that they can't be. Raises InvalidRequest naming the field."""
    for index, mount in enumerate(config.mounts):
        place, field = _normal(mount.container_path), _field(index)
        _outside_proc(place, place, field)
        if place in _KINDS and mount.image is not None:
            raise InvalidRequest(f"an image can't take the place of {place}", field=field)
        if place == "/dev/pts" and config.tty:
            raise InvalidRequest("a terminal (config.tty) needs the container's own /dev/pts", field=field)


async def check_root(config: ContainerConfig, root: Path) -> None:
    """The same for places that links of the image at ``root`` lead to, and for /dev, /proc and /sys themselves.

    Raises InvalidRequest naming the field, or the image's fault.
    """
    await run_sync(_check_root, config, root)  # one hop to a thread for both


def _check_root(config: ContainerConfig, root: Path) -> None:
    rootfs.check_mount_points(root)
    for index, mount in enumerate(config.mounts):
        place, field = _normal(mount.container_path), _field(index)
        try:
            leads_to = rootfs_dirs.follow_here(root, place)
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, field=field) from exc
        _outside_proc(place, leads_to, field)
        if leads_to != place and leads_to in (*_KINDS, "/dev/pts"):
            raise InvalidRequest(f"{place} is a link to {leads_to} in the image", field=field)


def _outside_proc(place: str, leads_to: str, field: str) -> None:
    if leads_to.startswith("/proc/") and leads_to not in _WITHIN_PROC:
        raise InvalidRequest(f"{place} lies in /proc, where the runtime itself writes: nothing may be mounted there", field=field)


def _field(index: int) -> str:
    return f"config.mounts[{index}].container_path"


def is_special(container_path: str) -> bool:
    """Whether only the host's own file system of that kind may be mounted there."""
    return _normal(container_path) in _KINDS


async def check_source(container_path: str, found: Found, field: str) -> None:
    """At /dev and /proc only the host's own are let in. ``found`` was looked at with ``keep``. Raises InvalidRequest naming the field."""
    place = _normal(container_path)
    if place not in _KINDS or found.fd is None:
        return
    mount = await mounts.of_descriptor(found.fd)
    if found.path != place and mount.fstype not in _KINDS[place]:
        raise InvalidRequest(f"only the host's own {place} can be mounted at {place}, and {found.path} is {mount.fstype}", field=field)


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))
