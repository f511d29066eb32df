"""The volumes of a container: from each ``config.mounts[i]`` to what the OCI spec binds there.

One step of CreateContainer. A mount names a path of the host or an image; either way the result is a ``Volume`` with the
source and the options of its bind mount, so that the spec itself stays a pure function. What a runtime may not be able to
do is done here by a prepared copy of the mount at ``volume_dir`` (bridge.host.mount_copies), and the spec binds that.

Source: CRI v1 Mount and MountPropagation.
"""

from __future__ import annotations

import os
from pathlib import Path

from bridge.core import image_volumes
from bridge.core.making import Making
from bridge.core.model import ContainerConfig, MountPropagation, MountRequest
from bridge.core.spec_inputs import Volume
from bridge.errors import InvalidRequest, RROUnsupported, TimedOut, Unsupported
from bridge.host import files

_PROPAGATION = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_PASSED_OPTIONS = frozenset({"nodev", "noexec", "nosuid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow"})


def check(config: ContainerConfig) -> None:
    """Refuse what the request alone shows to be wrong, before anything is touched. Raises InvalidRequest, Unsupported."""
    for index, mount in enumerate(config.mounts):
        field = f"config.mounts[{index}]"
        access(mount, field)
        extra_options(mount, field)
        if mount.uid_mappings or mount.gid_mappings:
            raise Unsupported(f"{field}.uid_mappings: id-mapped mounts are not supported")
        if mount.image is not None:
            image_volumes.check(mount, field)
            continue
        if not os.path.isabs(mount.host_path) or "\0" in mount.host_path:
            raise InvalidRequest(f"{mount.host_path!r} is not an absolute path", field=f"{field}.host_path")


async def prepare(making: Making) -> tuple[Volume, ...]:
    """One Volume for each of config.mounts, in its order. Raises InvalidRequest, TimedOut (a dead network mount), RROUnsupported."""
    return tuple([await _volume(index, request, making) for index, request in enumerate(making.config.mounts)])


def volume_dir(making: Making, index: int) -> Path:
    """Where the prepared copy for config.mounts[index] is attached."""
    return making.bundle / "volumes" / str(index)


async def _volume(index: int, request: MountRequest, making: Making) -> Volume:
    if request.image is not None:
        return await image_volumes.mount(making, index, extra_options(request, f"config.mounts[{index}]"))
    return await _host_volume(index, request, making)


async def _host_volume(index: int, request: MountRequest, making: Making) -> Volume:
    field = f"config.mounts[{index}]"
    source = await _look_at(f"{field}.host_path", request, making)
    # Between the look and the options: relabelling for SELinux, and a copy seen through the pod's user namespace.
    if request.recursive_read_only:
        raise RROUnsupported(f"{field}: {request.container_path} can't be mounted recursively read-only")
    return Volume(source, host_options(request, field))


async def _look_at(field: str, request: MountRequest, making: Making) -> str:
    """The path that is bound; a missing one is made. Raises InvalidRequest, TimedOut."""
    settings, path = making.settings, Path(request.host_path)
    try:
        there = await files.exists(path, timeout=settings.volume_timeout)
    except TimeoutError as exc:
        raise TimedOut(f"{field}: {path} did not answer within {settings.volume_timeout:g} s (a dead network mount?)") from exc
    if not there:
        if not settings.create_missing_volumes:
            raise InvalidRequest(f"{path} does not exist", field=field)
        await files.make_dir(path, 0o755)
    return request.host_path


def host_options(request: MountRequest, field: str) -> tuple[str, ...]:
    """OCI mount options of a bind mount as requested."""
    return ("rbind", _PROPAGATION[request.propagation], access(request, field), *extra_options(request, field))


def access(request: MountRequest, field: str) -> str:
    """rw, ro or rro (CRI: recursive needs readonly and private propagation). Raises InvalidRequest."""
    if not request.recursive_read_only:
        return "ro" if request.readonly else "rw"
    if not request.readonly:
        raise InvalidRequest("needs readonly", field=f"{field}.recursive_read_only")
    if request.propagation is not MountPropagation.PRIVATE:
        raise InvalidRequest("needs PROPAGATION_PRIVATE", field=f"{field}.recursive_read_only")
    return "rro"


def extra_options(request: MountRequest, field: str) -> tuple[str, ...]:
    """config.mounts[i].mount_options, each one of those that may be given. Raises InvalidRequest."""
    for index, option in enumerate(request.mount_options):
        if option not in _PASSED_OPTIONS:
            raise InvalidRequest(f"{option!r} is not one of {', '.join(sorted(_PASSED_OPTIONS))}", field=f"{field}.mount_options[{index}]")
    return request.mount_options
