"""The OCI ``mounts``: the standard ones of every container, the pod's own files, then what the request adds.

Sources: CRI v1 Mount and MountPropagation, OCI config.md "Mounts" and config-linux.md "Default Filesystems".
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.core import pod_namespaces
from bridge.core.model import MountPropagation, MountRequest, NamespaceMode
from bridge.core.spec_inputs import ContainerInputs, Volume
from bridge.errors import InvalidRequest

_TTY = 5  # the group of terminals, by convention
_KERNEL_TREES = ("/dev", "/proc", "/sys")

Mount = dict[str, Any]


def build(inputs: ContainerInputs) -> tuple[list[Mount], str]:
    """All mounts, parents before children, and the rootfs propagation they need ("" for the runtime's own).

    A requested mount replaces the standard one of the same place; one on /dev, /proc or /sys also those below it, whose
    mount points would else be made in the source. Raises InvalidRequest naming the field.
    """
    config = inputs.config
    pairs = zip(config.mounts, inputs.volumes, strict=True)
    mounts: list[Mount] = [_requested(index, request, volume) for index, (request, volume) in enumerate(pairs)]
    mounts = [*_yielding(inputs.added_mounts, mounts), *mounts]
    mounts = [*_yielding([*kernel_mounts(config.security.privileged, _terminal_group(inputs)), *_pod_mounts(inputs)], mounts), *mounts]
    return ordered(mounts), _rootfs_propagation(config.mounts)


def ordered(mounts: Iterable[Mount]) -> list[Mount]:
    """Parents before children; equals keep their order."""
    return sorted(mounts, key=lambda mount: str(mount["destination"]).count("/"))


def _yielding(mounts: Iterable[Mapping[str, Any]], winners: Iterable[Mount]) -> list[Mount]:
    """Those of ``mounts`` whose place none of ``winners`` takes."""
    taken = {mount["destination"] for mount in winners}
    return [dict(each) for each in mounts if each["destination"] not in taken and not _below_taken_tree(each["destination"], taken)]


def _below_taken_tree(destination: str, taken: set[str]) -> bool:
    return any(tree in taken and destination.startswith(tree + "/") for tree in _KERNEL_TREES)


def _terminal_group(inputs: ContainerInputs) -> bool:
    user = pod_namespaces.user_namespace(inputs.sandbox.config)
    return user is None or user.gids[0].length > _TTY


def kernel_mounts(privileged: bool, terminal_group: bool = True) -> list[Mount]:
    """/proc, /dev, /dev/pts, /dev/mqueue, /sys and /sys/fs/cgroup; the last two read-only unless privileged.

    Terminals are of group tty where ``terminal_group`` says that there is one; a small user namespace has none.
    """
    access, group = "rw" if privileged else "ro", [f"gid={_TTY}"] if terminal_group else []
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", access),
    ]


def _pod_mounts(inputs: ContainerInputs) -> list[Mount]:
    """The pod's shared memory (the host's with host IPC) and its name-service files."""
    host_ipc = inputs.sandbox.config.security.namespaces.ipc is NamespaceMode.NODE
    shm = "/dev/shm" if host_ipc else str(inputs.sandbox_dir / "shm")
    access = "ro" if inputs.config.security.readonly_rootfs else "rw"
    files = [
        _mount(f"/etc/{name}", "bind", str(inputs.sandbox_dir / name), "bind", "rprivate", "nosuid", "nodev", "noexec", access)
        for name in ("resolv.conf", "hostname", "hosts")
    ]
    return [_mount("/dev/shm", "bind", shm, "rbind", "rprivate", "nosuid", "nodev", "noexec"), *files]


def _mount(destination: str, kind: str, source: str, *options: str) -> Mount:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _requested(index: int, request: MountRequest, volume: Volume) -> Mount:
    mount = _mount(destination(request.container_path, f"config.mounts[{index}]"), "bind", volume.source, *volume.options)
    return {**mount, **volume.extra}


def destination(path: str, field: str) -> str:
    """Where config.mounts[i].container_path is: absolute and normal. Raises InvalidRequest.

    The kubelet allows a relative mountPath, and ".." ends at the root.
    """
    if not path or "\0" in path:
        raise InvalidRequest("is empty or holds a NUL byte", field=f"{field}.container_path")
    normal = posixpath.normpath("/" + path.lstrip("/"))
    if normal == "/":
        raise InvalidRequest("can't be the container's root", field=f"{field}.container_path")
    return normal


def _rootfs_propagation(requests: tuple[MountRequest, ...]) -> str:
    """Shared mounts need a shared root to spread from, slave ones a root that is a slave."""
    kinds = {request.propagation for request in requests}
    if MountPropagation.BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in kinds else ""
