"""The OCI ``mounts``: the standard ones of every container, the pod's own files, then what the request adds.

Sources: CRI v1 Mount and MountPropagation, OCI config.md "Mounts" and config-linux.md "Default Filesystems".
"""

from __future__ import annotations

import posixpath
from typing import Any

from bridge.core.model import MountPropagation, MountRequest, NamespaceMode
from bridge.core.spec_inputs import ContainerInputs
from bridge.errors import InvalidRequest, RROUnsupported, Unsupported

_PROPAGATION = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_KERNEL_TREES = ("/dev", "/proc", "/sys")
_PASSED_OPTIONS = frozenset({"nodev", "noexec", "nosuid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow"})

Mount = dict[str, Any]


def build(inputs: ContainerInputs) -> tuple[list[Mount], str]:
    """All mounts, parents before children, and the rootfs propagation they need ("" for the runtime's own).

    A requested mount replaces the standard one of the same place; one on /dev, /proc or /sys also those below it, whose
    mount points would else be made in the source. Raises InvalidRequest or Unsupported naming the field.
    """
    config = inputs.config
    asked = [_requested(index, request, inputs) for index, request in enumerate(config.mounts)]
    taken = {mount["destination"] for mount in asked}
    standard = [
        mount
        for mount in [*kernel_mounts(config.security.privileged), *_pod_mounts(inputs)]
        if mount["destination"] not in taken and not _below_taken_tree(mount["destination"], taken)
    ]
    mounts = sorted([*standard, *asked], key=lambda mount: str(mount["destination"]).count("/"))
    return mounts, _rootfs_propagation(config.mounts)


def _below_taken_tree(destination: str, taken: set[str]) -> bool:
    return any(tree in taken and destination.startswith(tree + "/") for tree in _KERNEL_TREES)


def kernel_mounts(privileged: bool) -> list[Mount]:
    """/proc, /dev, /dev/pts, /dev/mqueue, /sys and /sys/fs/cgroup; the last two read-only unless privileged."""
    access = "rw" if privileged else "ro"
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
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


def _requested(index: int, request: MountRequest, inputs: ContainerInputs) -> Mount:
    field = f"config.mounts[{index}]"
    if request.image is not None:
        raise Unsupported(f"{field}.image: image volumes are not served yet")
    if request.uid_mappings or request.gid_mappings:
        raise Unsupported(f"{field}.uid_mappings: id-mapped mounts are not served yet")
    destination = _destination(request.container_path, field)
    if not request.host_path.startswith("/") or "\0" in request.host_path:
        raise InvalidRequest(f"{request.host_path!r} is not an absolute path", field=f"{field}.host_path")
    options = ["rbind", _PROPAGATION[request.propagation], _access(request, field, inputs), *_extra_options(request, field)]
    return _mount(destination, "bind", request.host_path, *options)


def _destination(path: str, field: str) -> str:
    """Absolute and normal: the kubelet allows a relative mountPath, and ".." ends at the root."""
    if not path or "\0" in path:
        raise InvalidRequest("is empty or holds a NUL byte", field=f"{field}.container_path")
    normal = posixpath.normpath("/" + path.lstrip("/"))
    if normal == "/":
        raise InvalidRequest("can't be the container's root", field=f"{field}.container_path")
    return normal


def _access(request: MountRequest, field: str, inputs: ContainerInputs) -> str:
    """rw, ro or rro (CRI: recursive needs readonly and private propagation)."""
    if not request.recursive_read_only:
        return "ro" if request.readonly else "rw"
    if not request.readonly:
        raise InvalidRequest("needs readonly", field=f"{field}.recursive_read_only")
    if request.propagation is not MountPropagation.PRIVATE:
        raise InvalidRequest("needs PROPAGATION_PRIVATE", field=f"{field}.recursive_read_only")
    if not inputs.recursive_read_only:
        raise RROUnsupported(f"{field}: handler {inputs.sandbox.handler!r} can't mount {request.container_path} recursively read-only")
    return "rro"


def _extra_options(request: MountRequest, field: str) -> list[str]:
    for index, option in enumerate(request.mount_options):
        if option not in _PASSED_OPTIONS:
            raise InvalidRequest(f"{option!r} is not one of {', '.join(sorted(_PASSED_OPTIONS))}", field=f"{field}.mount_options[{index}]")
    return list(request.mount_options)


def _rootfs_propagation(requests: tuple[MountRequest, ...]) -> str:
    """Shared mounts need a shared root to spread from, slave ones a root that is a slave."""
    kinds = {request.propagation for request in requests}
    if MountPropagation.BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in kinds else ""
