"""Volumes whose files have other owners in the container: ``Mount.uidMappings`` and ``gidMappings`` (KEP-127).

A file of user ``container_id`` on its file system is seen as the host's user ``host_id``; with the mapping of the pod's user
namespace, root of the volume is root of the container. Ids without a mapping are nobody's and can't be written as.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.core import pod_namespaces
from bridge.core.making import Making
from bridge.core.model import IDMapping, MountPropagation, MountRequest
from bridge.errors import InvalidRequest
from bridge.host import namespaces, user_namespaces

_MOST_RANGES = 340  # UID_GID_MAP_MAX_EXTENTS of Linux


def asked(request: MountRequest) -> bool:
    """Whether the mount names mappings."""
    return bool(request.uid_mappings or request.gid_mappings)


def check(request: MountRequest, field: str) -> None:
    """Refuse what the request alone shows to be wrong. Raises InvalidRequest naming the field."""
    if not asked(request):
        return
    kinds = {"uid_mappings": request.uid_mappings, "gid_mappings": request.gid_mappings}
    for name, mappings in kinds.items():
        if not mappings:
            raise InvalidRequest("users and groups need mappings both", field=f"{field}.{name}")
        _check_ranges(mappings, f"{field}.{name}")
    if request.propagation is not MountPropagation.PRIVATE:
        raise InvalidRequest(f"id mappings need {MountPropagation.PRIVATE}", field=f"{field}.propagation")


def _check_ranges(mappings: Sequence[IDMapping], field: str) -> None:
    if len(mappings) > _MOST_RANGES:
        raise InvalidRequest(f"has {len(mappings)} ranges, the kernel takes {_MOST_RANGES}", field=field)
    for index, one in enumerate(mappings):
        if one.length < 1:
            raise InvalidRequest("must be at least 1", field=f"{field}[{index}].length")
        if max(one.host_id, one.container_id) + one.length - 1 > pod_namespaces.MAX_HOST_ID:
            raise InvalidRequest(f"the range passes the highest id, {pod_namespaces.MAX_HOST_ID}", field=f"{field}[{index}].length")
    for (_, one), (index, other) in combinations(enumerate(mappings), 2):
        for name, first, second in (
            ("container_id", one.container_id, other.container_id),
            ("host_id", one.host_id, other.host_id),
        ):
            if first < second + other.length and second < first + one.length:
                raise InvalidRequest("overlaps with an earlier range", field=f"{field}[{index}].{name}")


@asynccontextmanager
async def namespace(request: MountRequest, making: Making) -> AsyncIterator[Path | None]:
    """The path of a user namespace by whose mapping the volume is shown; None: its owners are as they are.

    It is the pod's own where the mappings are the pod's, else one made for them. An image volume without mappings gets the
    pod's. Raises HostError, TimedOut.
    """
    pod, pin = pod_namespaces.user_namespace(making.sandbox.config), pod_namespaces.pin(making.sandbox)
    if not asked(request):
        yield None if request.image is None else pin
        return
    if pod is not None and pin is not None and (pod.uids, pod.gids) == (request.uid_mappings, request.gid_mappings):
        yield pin
        return
    descriptor = await user_namespaces.open_temporary(pod_namespaces.maps(request.uid_mappings, request.gid_mappings))
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@asynccontextmanager
async def opened(path: Path | None) -> AsyncIterator[int | None]:
    """A descriptor of the user namespace at ``path``, None for None. Raises NotFound, HostError."""
    if path is None:
        yield None
        return
    descriptor = await run_sync(namespaces.open_pin, path, "user")
    try:
        yield descriptor
    finally:
        os.close(descriptor)
