"""Cgroups of pods as a kubelet names, makes and removes them, for each cgroup driver. Everything blocks."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import PurePosixPath

from bridge.errors import HostError
from bridge.host import cgroup_kill, cgroups
from bridge.host.cgroup_paths import CgroupDriver, pod_cgroup


@dataclass(frozen=True, slots=True)
class PodCgroups:
    """The kubelet's side of ``driver``, which the server's RuntimeConfig names."""

    driver: CgroupDriver

    @property
    def systemd(self) -> bool:
        """Whether they are slices."""
        return self.driver is CgroupDriver.SYSTEMD

    def top(self, name: str) -> str:
        """A parent for pods, as the CRI's ``cgroup_parent`` names it. ``name``: letters and digits."""
        return f"/{name}.slice" if self.systemd else f"/{name}"

    def of_pod(self, name: str, pod: str) -> str:
        """The cgroup of ``pod`` below ``top(name)``."""
        return f"/{name}.slice/{name}-{pod.replace('-', '_')}.slice" if self.systemd else f"/{name}/{pod}"

    def of_container(self, parent: str, prefix: str, ident: str) -> str:
        """A container's ``linux.cgroupsPath``."""
        return f"{PurePosixPath(parent).name}:{prefix}:{ident}" if self.systemd else f"{parent}/{prefix}-{ident}"

    def create(self, parent: str) -> None:
        """Make it, with its parents. Raises HostError."""
        if self.systemd:
            _systemctl("start", PurePosixPath(parent).name)
        else:
            cgroups.create(parent)

    def remove(self, parent: str) -> None:
        """End everyone in it and remove it. Raises HostError."""
        for directory in cgroups.layout().directories(pod_cgroup(parent, self.driver)):
            cgroup_kill.kill_all(directory)
        if self.systemd:
            _systemctl("stop", PurePosixPath(parent).name)
        cgroups.remove(pod_cgroup(parent, self.driver))

    def end_slice(self, parent: str) -> None:
        """End the slice of a pod that is gone, as its kubelet does. With cgroupfs the server itself removes the cgroup that it made."""
        if self.systemd:
            self.remove(parent)


def _systemctl(verb: str, unit: str) -> None:
    done = subprocess.run([shutil.which("systemctl") or "systemctl", verb, unit], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise HostError(f"systemctl can't {verb} {unit}: {done.stderr.strip()}")
