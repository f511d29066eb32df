"""From the OCI spec that the server built to the one that runsc takes. Pure.

What runsc has no use for is left out, so that it does not warn of it in each container's log; PID namespaces are named, as runsc
shares them by name; and the sandbox is put into the pod's own cgroup, whose limits the kubelet sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.ports.runtime import CONTAINER_PID_NAMESPACE, SANDBOX_PID_NAMESPACE, SandboxSpec

CGROUP_PARENT = "dev.gvisor.spec.cgroup-parent"
YOUNG_CAPABILITIES = ("CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE")
"""Those of Linux 5.8 and 5.9, by which nothing can be done in gVisor; a runsc that doesn't know them starts nobody who has them."""
_CONTAINER_TYPE = "io.kubernetes.cri.container-type"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
CONTAINER_ID = "io.kubernetes.cri-o.ContainerID"
_LINUX_LEFT_OUT = ("devices", "mountLabel", "rootfsPropagation", "intelRdt")
_PROCESS_LEFT_OUT = ("apparmorProfile", "selinuxLabel")
_NAMESPACES = ("network", "pid", "ipc", "uts", "mount")


def of_sandbox(spec: SandboxSpec, *, systemd_cgroup: bool, seccomp: bool, unified: bool) -> dict[str, Any]:
    """The sandbox container's spec. In a pod without a cgroup of its own, and with systemd, the sandbox has one with the pod's limits.

    Else the pod's cgroup has the limits, and the sandbox is in that; or, in cgroup v2 (``unified``), in one below it without any: a
    cgroup there can't hold a process and hand controllers down to the containers' (cgroup-v2.rst, "No Internal Process Constraint").
    """
    oci = _common(spec.oci or {}, seccomp=seccomp)
    notes = {**oci.get("annotations", {}), **marks("sandbox", spec.id)}
    if not spec.cgroup or systemd_cgroup:
        return {**oci, "annotations": notes}
    if not unified:
        notes[CGROUP_PARENT] = spec.cgroup
    return {**oci, "annotations": notes, "linux": {**oci["linux"], "resources": {}}}


def marks(kind: str, sandbox_id: str) -> dict[str, str]:
    """What tells runsc whether a container is a "sandbox" or a "container" in one."""
    return {_CONTAINER_TYPE: kind, SANDBOX_ID: sandbox_id}


def without_young(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process without the YOUNG_CAPABILITIES."""
    sets = process.get("capabilities") or {}
    return {**process, "capabilities": {name: [one for one in held if one not in YOUNG_CAPABILITIES] for name, held in sets.items()}}


def of_container(oci: Mapping[str, Any], ident: str, sandbox_id: str, *, seccomp: bool) -> dict[str, Any]:
    """A member's spec. One in the pod's PID namespace gets none of its own, which is the sandbox's."""
    made = _common(oci, seccomp=seccomp)
    notes = {**made.get("annotations", {}), **marks("container", sandbox_id)}
    linux = made["linux"]
    kept = [one for one in linux["namespaces"] if one["type"] != "pid"]
    own = next((one for one in linux["namespaces"] if one["type"] == "pid"), None)
    if own is not None and own.get("path") != SANDBOX_PID_NAMESPACE:
        kept.append({"type": "pid", "path": own.get("path") or pid_namespace(ident)})
    return {**made, "annotations": notes, "linux": {**linux, "namespaces": kept}}


def process(given: Mapping[str, Any]) -> dict[str, Any]:
    """A process of a container or an exec. A user other than root keeps its ambient capabilities alone.

    On Linux that is what execve(2) leaves of them (capabilities(7)); runsc would give the process all that the spec lists.
    """
    made = {key: value for key, value in given.items() if key not in _PROCESS_LEFT_OUT}
    capabilities = made.get("capabilities")
    if capabilities and made.get("user", {}).get("uid", 0) != 0:
        ambient = capabilities.get("ambient", [])
        made["capabilities"] = {**capabilities, "effective": ambient, "permitted": ambient}
    if groups := made.get("user", {}).get("additionalGids"):
        made["user"] = {**made["user"], "additionalGids": sorted(groups)}  # as Linux keeps them; gVisor keeps any order
    return made


def pid_namespace(ident: str) -> str:
    """The name by which another container joins this one's PID namespace; runsc compares paths and opens none."""
    return f"{CONTAINER_PID_NAMESPACE}{ident}"


def _common(oci: Mapping[str, Any], *, seccomp: bool) -> dict[str, Any]:
    linux = {key: value for key, value in oci.get("linux", {}).items() if key not in _LINUX_LEFT_OUT}
    if not seccomp:
        linux.pop("seccomp", None)
    linux["namespaces"] = [dict(one) for one in linux.get("namespaces", ()) if one["type"] in _NAMESPACES]
    resources = {key: value for key, value in linux.get("resources", {}).items() if key != "devices"}
    return {**oci, "process": process(oci.get("process", {})), "linux": {**linux, "resources": resources}}
