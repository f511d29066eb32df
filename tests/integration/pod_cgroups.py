"""Cgroups of pods as a kubelet names, makes and removes them, with the cgroup driver that ``auto`` means on this host."""

from __future__ import annotations

import subprocess
from pathlib import PurePosixPath

from bridge.config import Config
from bridge.daemon_settings import cgroup_driver
from bridge.host import cgroups
from bridge.host.cgroup_paths import CgroupDriver, pod_cgroup
from bridge.host.facts import gather

DRIVER = cgroup_driver(Config(), gather())
_SYSTEMD = DRIVER is CgroupDriver.SYSTEMD


def top(name: str) -> str:
    """A parent for the pods of one test, as the CRI's ``cgroup_parent`` names it. ``name``: letters and digits."""
    return f"/{name}.slice" if _SYSTEMD else f"/{name}"


def of_pod(name: str, pod: str) -> str:
    """The cgroup of ``pod`` below ``top(name)``."""
    return f"/{name}.slice/{name}-{pod.replace('-', '_')}.slice" if _SYSTEMD else f"/{name}/{pod}"


def of_container(parent: str, prefix: str, ident: str) -> str:
    """A container's ``linux.cgroupsPath``."""
    return f"{PurePosixPath(parent).name}:{prefix}:{ident}" if _SYSTEMD else f"{parent}/{prefix}-{ident}"


def create(parent: str) -> None:
    """Make it, with its parents."""
    if _SYSTEMD:
        subprocess.run(["systemctl", "start", PurePosixPath(parent).name], check=True)
    else:
        cgroups.create(parent)


def remove(parent: str) -> None:
    """End everyone in it and remove it."""
    for directory in cgroups.layout().directories(pod_cgroup(parent, DRIVER)):
        cgroups.kill_all(directory)
    if _SYSTEMD:
        subprocess.run(["systemctl", "stop", PurePosixPath(parent).name], check=True)
    cgroups.remove(pod_cgroup(parent, DRIVER))


def end_slice(parent: str) -> None:
    """End the slice of a pod that is gone, as its kubelet does. With cgroupfs the server itself removes the cgroup that it made."""
    if _SYSTEMD:
        remove(parent)
