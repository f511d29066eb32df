"""A privileged container's sysfs is writable (CRI LinuxContainerSecurityContext.privileged), also beside unprivileged ones."""

from __future__ import annotations

from pathlib import Path

from bridge.core.making import Making
from bridge.host import sysfs


async def prepare(making: Making) -> None:
    """Undo what an unprivileged container of the pod may have done to the file system that all of the pod mount. Raises HostError."""
    pins = making.sandbox.namespaces
    # In a user namespace sysfs is another one, which belongs to the pod's root.
    if making.config.security.privileged and "net" in pins and "user" not in pins:
        await sysfs.make_writable(Path(pins["net"]))
