"""Devices in the OCI spec: the nodes that the runtime makes, the device cgroup's rules, and bind mounts in user namespaces.

Nobody can make a device node in a user namespace: there runc and crun bind-mount the host's node of the *same* path. One that
shall have another path inside must therefore be a mount. Source: OCI config-linux.md "Devices" and "Allowed Device list".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bridge.core import pod_namespaces
from bridge.core.entities import Sandbox
from bridge.core.spec_inputs import DeviceNode


def in_user_namespace(sandbox: Sandbox) -> bool:
    """Whether the pod has a user namespace of its own."""
    return pod_namespaces.user_namespace(sandbox.config) is not None


def nodes(devices: Iterable[DeviceNode], sandbox: Sandbox) -> list[dict[str, Any]]:
    """``linux.devices``."""
    return [_node(device) for device in devices if not _must_be_bound(device, sandbox)]


def binds(devices: Iterable[DeviceNode], sandbox: Sandbox) -> list[dict[str, Any]]:
    """``mounts`` for what can't be a node."""
    return [bind(device.source, device.path) for device in devices if _must_be_bound(device, sandbox)]


def bind(source: str, path: str) -> dict[str, Any]:
    """The bind mount of a device node."""
    return {"destination": path, "type": "bind", "source": source, "options": ["bind", "rprivate", "nosuid", "noexec"]}


def rules(devices: Sequence[DeviceNode], privileged: bool) -> list[dict[str, Any]]:
    """``linux.resources.devices``: deny all, then what was asked for. The runtime adds the default devices (null, zero, tty …)
    that OCI makes its duty. A fifo is no device and needs no rule."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    found: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    found += [
        {"allow": True, "type": device.kind, "major": device.major, "minor": device.minor, "access": device.permissions}
        for device in devices
        if device.kind != "p"
    ]
    return found


def _must_be_bound(device: DeviceNode, sandbox: Sandbox) -> bool:
    return bool(device.source) and device.source != device.path and in_user_namespace(sandbox)


def _node(device: DeviceNode) -> dict[str, Any]:
    numbers = {} if device.kind == "p" else {"major": device.major, "minor": device.minor}
    return {"path": device.path, "type": device.kind, **numbers, "fileMode": device.mode, "uid": device.uid, "gid": device.gid}
