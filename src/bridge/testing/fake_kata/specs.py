"""OCI specs: what Kata reads of a bundle on the host, and what its agent makes of it in the guest."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge.errors import NotFound
from bridge.host.cgroup_paths import CgroupDriver, of_cgroups_path

_TYPES: Final = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_SANDBOX_IDS: Final = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
_SHARED: Final = ("ipc", "uts")
_HOST_ONLY: Final = ("uidMappings", "gidMappings", "rootfsPropagation", "mountLabel", "resources", "devices", "intelRdt", "netDevices")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's spec, and what its annotations say of it."""

    path: Path
    spec: Mapping[str, Any]

    @property
    def is_sandbox(self) -> bool:
        """Whether it is the pod's sandbox container; what has no annotation is a pod of its own."""
        return self._annotation(_TYPES) in ("", "sandbox")

    @property
    def is_crio(self) -> bool:
        """Whether its annotations are CRI-O's, who wants to find a file when memory ran out."""
        return (self.spec.get("annotations") or {}).get("io.kubernetes.cri-o.ContainerType") in ("sandbox", "container")

    @property
    def sandbox_id(self) -> str:
        """Id of the pod that a member belongs to. Raises NotFound when its annotations don't say."""
        found = self._annotation(_SANDBOX_IDS)
        if not found:
            raise NotFound("could not find sandbox ID")
        return found

    @property
    def root(self) -> Path:
        """The root file system; as in OCI, relative to the bundle."""
        return self.path / str(self.spec["root"]["path"])

    @property
    def netns(self) -> str:
        """Path of the pod's network namespace; "" for one of its own."""
        namespaces = self.spec["linux"].get("namespaces") or []
        return next((entry.get("path", "") for entry in namespaces if entry["type"] == "network"), "")

    @property
    def cgroup_parent(self) -> str:
        """The pod's cgroup, from the hierarchies' root: the machine's processes are in it."""
        path = self.spec["linux"].get("cgroupsPath", "")
        if not path:
            return "/"
        driver = CgroupDriver.SYSTEMD if path.count(":") == 2 else CgroupDriver.CGROUPFS
        return posixpath.dirname(of_cgroups_path(path, driver))

    def _annotation(self, names: tuple[str, ...]) -> str:
        given = self.spec.get("annotations") or {}
        return next((given[name] for name in names if name in given), "")


def load(path: Path) -> Bundle:
    """The bundle in ``path``. Raises OSError, ValueError."""
    return Bundle(path, json.loads((path / "config.json").read_text()))


def in_guest(bundle: Bundle, *, cgroup: str, netns: str, pause: int | None) -> dict[str, Any]:
    """The spec that the agent runs. ``pause`` is the pid, in the guest, of the sandbox container, whose namespaces members share.

    Kata takes out what names things of the host: paths of namespaces, device rules, cpusets, user namespaces, labels, hooks.
    """
    spec = {key: value for key, value in bundle.spec.items() if key not in ("hooks", "hostname" if pause else "")}
    process = {key: value for key, value in spec["process"].items() if key not in ("apparmorProfile", "selinuxLabel")}
    linux = {key: value for key, value in spec["linux"].items() if key not in _HOST_ONLY}
    asked = {entry["type"]: entry.get("path", "") for entry in linux.get("namespaces") or []}
    namespaces = [{"type": "mount"}]
    namespaces += [{"type": kind, **({"path": f"/proc/{pause}/ns/{kind}"} if pause else {})} for kind in _SHARED]
    namespaces.append({"type": "pid", "path": f"/proc/{pause}/ns/pid"} if pause and asked.get("pid") else {"type": "pid"})
    namespaces.append({"type": "network", "path": netns} if netns else {"type": "network"})
    if pause:
        linux["sysctl"] = {}
    linux |= {"namespaces": namespaces, "cgroupsPath": cgroup, "resources": resources(bundle.spec["linux"].get("resources") or {})}
    return {**spec, "process": process, "linux": linux, "root": {**spec["root"], "path": str(bundle.root)}}


def resources(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``linux.resources`` what the agent applies to the guest's cgroups."""
    cpu = {key: value for key, value in (given.get("cpu") or {}).items() if key not in ("cpus", "mems")}
    found = {"cpu": cpu, "memory": given.get("memory"), "pids": given.get("pids")}
    return {key: value for key, value in found.items() if value}
