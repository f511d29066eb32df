"""The volumes of a container: from each ``config.mounts[i]`` to what the OCI spec binds there.

One step of CreateContainer. A mount names a path of the host or an image; either way the result is a ``Volume`` with the
source and the options of its bind mount, so that the spec itself stays a pure function. What a runtime may not be able to
do is done here by a prepared copy of the mount in ``volumes_dir`` (bridge.host.mount_copies), and the spec binds that.

Source: CRI v1 Mount and MountPropagation.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from pathlib import Path

from bridge import log
from bridge.core import id_mapped, image_volumes, mount_places, relabel
from bridge.core.entities import Container
from bridge.core.making import Making
from bridge.core.model import ContainerConfig, MountPropagation, MountRequest
from bridge.core.spec_inputs import Volume
from bridge.core.spec_mounts import destination
from bridge.errors import Denied, HostError, InvalidRequest, RROUnsupported, TimedOut, Unsupported
from bridge.host import files, mount_copies, mounts
from bridge.host.lookups import Found
from bridge.ports.runtime import Ability

_logger = log.get("core.volumes")
_PROPAGATION = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_SPREADING = {MountPropagation.HOST_TO_CONTAINER: ("shared:", "master:"), MountPropagation.BIDIRECTIONAL: ("shared:",)}
"""What the source's mount must have in its mountinfo, any of them."""
_PASSED_OPTIONS = frozenset({"nodev", "noexec", "nosuid", "noatime", "nodiratime", "relatime", "strictatime"})
"""Flags of one mount point that every runtime knows; none can reach the file system's own options (KEP-5855 names the first three)."""
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS})
_NO_MAPPING = frozenset({errno.EINVAL, errno.EPERM})  # not its kind; shown by another mapping already
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM})


def check(config: ContainerConfig) -> None:
    """Refuse what the request alone shows to be wrong, before anything is touched. Raises InvalidRequest, Unsupported."""
    mount_places.check(config)
    for index, mount in enumerate(config.mounts):
        field = f"config.mounts[{index}]"
        destination(mount.container_path, field)
        access(mount, field)
        extra_options(mount, field)
        id_mapped.check(mount, field)
        if mount.image is not None:
            image_volumes.check(mount, field)
            continue
        if not os.path.isabs(mount.host_path) or "\0" in mount.host_path:
            raise InvalidRequest(f"{mount.host_path!r} is not an absolute path", field=f"{field}.host_path")


async def prepare(making: Making) -> tuple[Volume, ...]:
    """One Volume for each of config.mounts, in its order.

    Raises TimedOut when a path does not answer (a dead network mount), InvalidRequest, RROUnsupported, Denied, HostError; each names
    the field.
    """
    return tuple([await _volume(index, request, making) for index, request in enumerate(making.config.mounts)])


def volumes_dir(bundle: Path) -> Path:
    """Where the prepared copies of one container's volumes are attached, the one for config.mounts[i] at ``i``."""
    return bundle / "volumes"


async def let_go(container: Container, bundle: Path) -> None:
    """Unmount what was prepared, as soon as the container runs and has mounts of its own, or nothing runs in it any more. Idempotent.

    Left mounted it would keep a volume's device busy, and the host could not remove a directory that is a mount point in such a copy.
    What fails is logged, and done again when the container is removed.
    """
    try:
        await image_volumes.unmount(container, bundle)
        if any(request.recursive_read_only or id_mapped.asked(request) for request in container.config.mounts):
            await mounts.unmount_each(volumes_dir(bundle))
    except HostError as exc:
        _logger.warning("container %s: its volumes stay mounted until it is removed: %s", container.id[:13], exc)


async def _volume(index: int, request: MountRequest, making: Making) -> Volume:
    if request.image is not None:
        return await image_volumes.mount(making, index, extra_options(request, f"config.mounts[{index}]"))
    return await _host_volume(index, request, making)


async def _host_volume(index: int, request: MountRequest, making: Making) -> Volume:
    field = f"config.mounts[{index}]"
    _check_ability(request, making, field)
    copied = making.facts.mount_copies and (request.recursive_read_only or id_mapped.asked(request))
    keep = copied or request.propagation in _SPREADING or request.selinux_relabel or mount_places.is_special(request.container_path)
    found = await look_at(request.host_path, making, f"{field}.host_path", keep=keep)
    try:
        await mount_places.check_source(request.container_path, found, f"{field}.container_path")
        await _check_propagation(found, request, field)
        await relabel.volume(found, index, making)
        source = str(await _copied(found, index, request, making)) if copied else found.path
    finally:
        if found.fd is not None:
            os.close(found.fd)
    if not copied:
        return Volume(source, host_options(request, field), resolved=source)
    return Volume(source, ("rbind", "rprivate", "ro" if request.readonly else "rw", *request.mount_options), resolved=found.path)


def _check_ability(request: MountRequest, making: Making, field: str) -> None:
    """Refuse what neither this kernel nor the handler can do. Raises RROUnsupported, Unsupported."""
    still = making.features.lacks(Ability.MOUNT_PROPAGATION)
    if still is not None and request.propagation in _SPREADING:
        raise Unsupported(f"{field}.propagation: handler {making.sandbox.handler!r} can't do {request.propagation} ({still})")
    if making.facts.mount_copies:
        return
    if id_mapped.asked(request):
        raise Unsupported(f"{field}.uid_mappings: {request.container_path} can't be given other owners, which needs Linux 5.12")
    if request.recursive_read_only and not making.features.has(Ability.RECURSIVE_READ_ONLY):
        why = f"neither this kernel nor handler {making.sandbox.handler!r} can mount {request.container_path} recursively read-only"
        raise RROUnsupported(f"{field}.recursive_read_only: {why}")


async def _copied(found: Found, index: int, request: MountRequest, making: Making) -> Path:
    async with id_mapped.namespace(request, making) as path, id_mapped.opened(path) as namespace:
        return await copy(found, index, making, read_only=request.recursive_read_only, user_namespace=namespace)


async def look_at(path: str, making: Making, field: str, *, keep: bool = False) -> Found:
    """What is at a host path of the request, made when it is missing if that is configured; see bridge.host.lookups.

    Raises InvalidRequest, Denied, TimedOut or HostError naming ``field`` and the path.
    """
    settings = making.settings
    make = settings.create_missing_volumes and posixpath.normpath(path) not in settings.never_created_volumes
    try:
        return await making.lookups.look(path, timeout=settings.volume_timeout, make=make, keep=keep)
    except TimedOut as exc:
        raise TimedOut(f"{field}: {exc.message}") from exc
    except HostError as exc:
        if exc.errno in _NOT_THERE:
            raise InvalidRequest(exc.message, field=field) from exc
        if exc.errno in _NOT_ALLOWED:
            raise Denied(f"{field}: {exc.message}") from exc
        raise HostError(f"{field}: {exc.message}", errno=exc.errno) from exc


async def copy(found: Found, index: int, making: Making, *, read_only: bool = False, user_namespace: int | None = None) -> Path:
    """A private, recursive copy of the mount at ``found`` (looked at with ``keep``), attached in the bundle.

    ``user_namespace`` is a descriptor of that by whose mapping its owners are seen. Raises HostError, Unsupported (no such mapping).

    The copy goes when the container has ended, or with the bundle.
    """
    assert found.fd is not None
    target = volumes_dir(making.bundle) / str(index)
    await files.make_mount_point(target, directory=stat.S_ISDIR(found.mode))
    try:
        await mount_copies.attach(found.fd, target, read_only=read_only, user_namespace=user_namespace)
    except HostError as exc:
        if user_namespace is not None and exc.errno in _NO_MAPPING:
            why = f"the file system of {found.path}, or of a mount below it, can't show other owners ({exc.message})"
            raise Unsupported(f"config.mounts[{index}].uid_mappings: {why}") from exc
        raise HostError(f"config.mounts[{index}]: can't copy the mount at {found.path}: {exc.message}", errno=exc.errno) from exc
    return target


async def _check_propagation(found: Found, request: MountRequest, field: str) -> None:
    """What is to spread must come from a mount that spreads (CRI MountPropagation). Raises InvalidRequest."""
    if found.fd is None or request.propagation not in _SPREADING:
        return
    mount = await mounts.of_descriptor(found.fd)
    needed = _SPREADING[request.propagation]
    if not any(tag.startswith(needed) for tag in mount.propagation):
        kind = "a shared mount" if len(needed) == 1 else "a shared or slave mount"
        advice = f"make it one (mount --make-rshared {mount.target}) or ask for {MountPropagation.PRIVATE}"
        raise InvalidRequest(
            f"{request.propagation} needs {kind}, but {found.path} lies on {mount.target}, which is private: {advice}",
            field=f"{field}.propagation",
        )


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
