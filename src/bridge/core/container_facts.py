"""What a container's spec needs to know of the host: its identity, its devices, a local seccomp profile.

All looking is done here, so that building the spec stays a pure function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core import users
from bridge.core.entities import User
from bridge.core.model import ContainerConfig, DeviceRequest, ProfileType, SecurityProfile
from bridge.core.spec_inputs import DeviceNode
from bridge.errors import BridgeError, InvalidRequest
from bridge.host import devices, files, rootfs
from bridge.ports.images import Image

_PERMISSIONS = frozenset("rwm")


async def identity(config: ContainerConfig, image: Image, root: Path) -> tuple[User, str]:
    """User and home from the request, the image's user and the image's own passwd and group files."""
    passwd, group = await rootfs.read_accounts(root)
    return users.resolve(config.security, image.config.user, passwd, group)


async def device_nodes(config: ContainerConfig) -> tuple[DeviceNode, ...]:
    """The nodes behind config.devices; all of the host's when privileged. Raises InvalidRequest."""
    found: dict[str, DeviceNode] = {}
    if config.security.privileged:
        for node in await devices.host():
            found[node.path] = _device(node, node.path, "rwm")
    for index, request in enumerate(config.devices):
        field = f"config.devices[{index}]"
        _check_device(request, field)
        try:
            nodes = await devices.at(Path(request.host_path))
        except BridgeError as exc:
            raise InvalidRequest(exc.message, field=f"{field}.host_path") from exc
        for node in nodes:
            inside = request.container_path + node.path.removeprefix(request.host_path)
            found[inside] = _device(node, inside, request.permissions)
    return tuple(found.values())


def _check_device(request: DeviceRequest, field: str) -> None:
    if not request.permissions or not set(request.permissions) <= _PERMISSIONS:
        raise InvalidRequest(f"{request.permissions!r} must be made of r, w and m", field=f"{field}.permissions")
    for name, path in (("host_path", request.host_path), ("container_path", request.container_path)):
        if not path.startswith("/"):
            raise InvalidRequest(f"{path!r} must be absolute", field=f"{field}.{name}")


def _device(node: devices.Node, path: str, permissions: str) -> DeviceNode:
    return DeviceNode(path, node.kind, node.major, node.minor, node.mode, node.uid, node.gid, permissions)


async def local_seccomp(config: ContainerConfig) -> Mapping[str, Any] | None:
    """The profile that a Localhost request names by absolute path, parsed. Raises InvalidRequest."""
    wanted: SecurityProfile | None = config.security.seccomp
    if wanted is None or wanted.profile_type is not ProfileType.LOCALHOST or config.security.privileged:
        return None
    field = "config.linux.security_context.seccomp.localhost_ref"
    if not wanted.localhost_ref.startswith("/"):
        raise InvalidRequest(f"{wanted.localhost_ref!r} must be an absolute path", field=field)
    text = await files.read_text(Path(wanted.localhost_ref), limit=4 << 20)
    if not text:
        raise InvalidRequest(f"{wanted.localhost_ref} does not exist or is empty", field=field)
    try:
        profile = json.loads(text)
    except ValueError as exc:
        raise InvalidRequest(f"{wanted.localhost_ref} is not JSON: {exc}", field=field) from exc
    if not isinstance(profile, dict):
        raise InvalidRequest(f"{wanted.localhost_ref} must hold a JSON object", field=field)
    return profile
