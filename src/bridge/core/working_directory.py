"""The directory in which a container's process begins: made where the image has none, and never a way out of the root.

containerd leaves the making to the runtime, CRI-O makes it itself; either way root owns it, mode 0755. Both of a path's
spellings are checked: as it is given, and as the image's links make it (CVE-2024-21626: one that leads to a descriptor of
the runtime is a directory of the host).
"""

from __future__ import annotations

from pathlib import Path

from bridge.core import spec_process
from bridge.core.making import Making
from bridge.core.spec_mounts import destination
from bridge.errors import HostError, InvalidRequest
from bridge.host import rootfs_dirs

_KERNEL_TREES = ("/dev", "/proc", "/sys")


async def prepare(making: Making, root: Path) -> None:
    """Make it, unless it lies in a volume, which the runtime alone sees. Raises InvalidRequest naming the field, HostError."""
    config, image = making.config, making.image.config
    path = spec_process.working_dir(config, image)
    if path == "/":
        return
    field = spec_process.working_dir_field(config)
    mounted = [destination(mount.container_path, f"config.mounts[{index}]") for index, mount in enumerate(config.mounts)]
    try:
        real = await rootfs_dirs.follow(root, path)
        if _lies_in(real, (*mounted, *_KERNEL_TREES)) or "user" in making.sandbox.namespaces:
            # In a user namespace the runtime makes it, so that the pod's own root owns it.
            spec_process.check_working_dir(real, field)
            return
        await rootfs_dirs.make(root, real)
    except InvalidRequest as exc:
        raise exc if exc.field else InvalidRequest(exc.message, field=field) from exc
    except HostError as exc:
        raise HostError(f"{field}: {exc.message}", errno=exc.errno) from exc


def _lies_in(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)
