"""The host's nodes behind the devices of a container: config.devices, the operator's additional ones, all when privileged.

Sources: CRI v1 Device; which nodes of /dev stay out and who owns a node are as in containerd and CRI-O.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from pathlib import Path

from bridge.core.entities import User
from bridge.core.model import ContainerConfig, DeviceRequest
from bridge.core.settings import CoreSettings
from bridge.core.spec_inputs import DeviceNode
from bridge.errors import HostError, InvalidRequest, NotFound, TimedOut
from bridge.host import devices
from bridge.host.lookups import Lookups

_PERMISSIONS = frozenset("rwm")
_OPTION = "runtime.additional_devices"
_DEV = "/dev/"


def check(config: ContainerConfig) -> None:
    """Refuse what can be told from the words alone. Raises InvalidRequest naming the field."""
    for index, request in enumerate(config.devices):
        field = f"config.devices[{index}]"
        if not request.permissions or not set(request.permissions) <= _PERMISSIONS:
            raise InvalidRequest(f"{request.permissions!r} must be made of r, w and m", field=f"{field}.permissions")
        for name, path in (("host_path", request.host_path), ("container_path", request.container_path)):
            if not path.startswith("/") or "\0" in path:
                raise InvalidRequest(f"{path!r} is not an absolute path", field=f"{field}.{name}")
        if posixpath.normpath(request.container_path).lstrip("/") == "":
            raise InvalidRequest("can't be the container's root", field=f"{field}.container_path")


async def find(
    config: ContainerConfig, user: User, settings: CoreSettings, lookups: Lookups, *, host_devices: bool = True
) -> tuple[DeviceNode, ...]:
    """Every node that the container gets, by its path inside; of two for one path the request's counts. Looks at the host now,
    so that what was plugged in since is found. Without ``host_devices`` a privileged one gets those that it asks for, as others do:
    its own kernel has others than the host's. Raises InvalidRequest naming the field, TimedOut, HostError."""
    found: dict[str, DeviceNode] = {}
    for request in settings.additional_devices:
        try:
            await _add(found, request, settings.volume_timeout, lookups)
        except (NotFound, HostError, TimedOut) as exc:
            raise HostError(f"{_OPTION}: {exc.message}") from exc
    if config.security.privileged and host_devices:
        for node in await devices.host():
            found[node.path] = _device(node, node.path, "rwm")
    asked: dict[str, DeviceNode] = {}
    for index, request in enumerate(config.devices):
        field = f"config.devices[{index}].host_path"
        try:
            await _add(asked, request, settings.volume_timeout, lookups)
        except (NotFound, HostError) as exc:
            raise InvalidRequest(exc.message, field=field) from exc
        except TimedOut as exc:
            raise TimedOut(f"{field}: {exc.message}") from exc
    if settings.device_ownership:
        asked = {path: replace(node, uid=user.uid or node.uid, gid=user.gid or node.gid) for path, node in asked.items()}
    return tuple({**found, **asked}.values())


async def _add(found: dict[str, DeviceNode], request: DeviceRequest, timeout: float, lookups: Lookups) -> None:
    host_path = posixpath.normpath(request.host_path)
    if not host_path.startswith(_DEV):
        # It may lie on a dead network mount, where only a child that can be killed may look first.
        await lookups.look(host_path, timeout=timeout)
    for node in await devices.at(Path(host_path), timeout=timeout):
        inside = posixpath.normpath(request.container_path) + node.path.removeprefix(host_path)
        found[inside] = _device(node, inside, request.permissions)


def _device(node: devices.Node, path: str, permissions: str) -> DeviceNode:
    return DeviceNode(path, node.kind, node.major, node.minor, node.mode, node.uid, node.gid, permissions, node.path)
