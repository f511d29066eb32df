"""OCI specs as Kata wants them. Pure: what comes from the host is handed in.

Kata reads some of a spec on the host (namespaces, mounts, annotations, hooks) and gives the rest to its agent, which applies it
in the guest. It drops what names things of the host: paths of namespaces but the network's, device rules, cpusets. What it
would pass to a guest that can't know it, such as profiles that are loaded in the host's kernel, is taken out here.

Sources: Kata's virtcontainers/kata_agent.go (constrainGRPCSpec, getDNS, handleShm, handlePidNamespace), pkg/oci (getShmSize).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.host.oci_documents import with_pid_namespace
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, SandboxSpec
from bridge_kata import sizing

Spec = dict[str, Any]
_IDLE_SHARES = 2


@dataclass(frozen=True, slots=True)
class Choices:
    """The operator's: ``annotations`` for every pod, whether machines are sized by their pods, and seccomp in the guest."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    static_sizing: bool = True
    guest_seccomp: bool = True


def sandbox(spec: SandboxSpec, rootfs: Path, choices: Choices) -> Spec:
    """The spec of the sandbox container of ``spec``, whose root is ``rootfs``: a directory that nobody else uses.

    What a pod chose and was allowed to goes before the operator's own settings.
    """
    oci = for_guest(spec.oci or {}, choices)
    given = oci.get("annotations") or {}
    annotations = {**choices.annotations, **(given if choices.static_sizing else sizing.without_sizes(given))}
    # Kata adds the limits of all containers up, the sandbox's included: with the pod's on it the machine would be twice as large.
    linux = {**(oci.get("linux") or {}), "resources": {"cpu": {"shares": _IDLE_SHARES}}}
    if spec.sysctls:
        linux["sysctl"] = {**(linux.get("sysctl") or {}), **spec.sysctls}
    return {
        **oci,
        "hostname": spec.hostname,
        "root": {**(oci.get("root") or {}), "path": str(rootfs)},
        "mounts": _with_pod_files(oci.get("mounts") or [], spec.state_dir),
        "annotations": annotations,
        "linux": linux,
    }


def _with_pod_files(mounts: list[Mapping[str, Any]], directory: Path) -> list[Mapping[str, Any]]:
    """Kata takes the guest's name servers and the size of its /dev/shm from mounts of the sandbox container."""
    own = [
        {"destination": "/dev/shm", "type": "bind", "source": str(directory / "shm"), "options": ["rbind", "rprivate", "nosuid", "nodev"]},
        {
            "destination": "/etc/resolv.conf",
            "type": "bind",
            "source": str(directory / "resolv.conf"),
            "options": ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro"],
        },
    ]
    taken = {mount["destination"] for mount in mounts}
    return [*mounts, *(mount for mount in own if mount["destination"] not in taken)]


def container(oci: Mapping[str, Any], choices: Choices, machine_pid: int | None) -> Spec:
    """The spec of a container. In a pod with one PID namespace its entry gets a path, any path: that is what Kata looks for."""
    return dict(with_pid_namespace(for_guest(oci, choices), SANDBOX_PID_NAMESPACE, f"/proc/{machine_pid or 1}/ns/pid"))


def for_guest(oci: Mapping[str, Any], choices: Choices) -> Spec:
    """``oci`` without what only the host's kernel has: AppArmor profiles, SELinux labels; seccomp if the guest is to have none."""
    process = {key: value for key, value in (oci.get("process") or {}).items() if key not in ("apparmorProfile", "selinuxLabel")}
    dropped = ("mountLabel",) if choices.guest_seccomp else ("mountLabel", "seccomp")
    linux = {key: value for key, value in (oci.get("linux") or {}).items() if key not in dropped}
    return {**oci, "process": process, "linux": linux}
