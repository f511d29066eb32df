"""Annotations of the OCI spec: the pod's and container's own, and the names by which runtimes know a pod's parts.

Runtimes steer themselves by some annotations (systemd properties with runc, CVE-2024-3154; hooks with crun; the VM with
Kata), so those of a pod only pass when the operator allows their prefix.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.core.entities import Sandbox
from bridge.core.model import Resources
from bridge.core.spec_inputs import ContainerInputs, SpecSettings

RUNTIME_CONTROL = (
    "org.systemd.property.",
    "run.oci.",
    "module.wasm.",
    "dev.gvisor.",
    "io.katacontainers.",
    "com.github.containers.",
    "org.criu.",
    "krun.",
)
_OURS = ("io.kubernetes.cri.", "io.kubernetes.cri-o.")


def for_container(inputs: ContainerInputs, settings: SpecSettings) -> dict[str, str]:
    """Annotations of a container: its own, then both families of names (containerd's and CRI-O's)."""
    sandbox, config = inputs.sandbox, inputs.config
    image = config.image.user_specified_image or config.image.image or inputs.image.id
    return {
        **_passed(config.annotations, settings),
        **_pod_names(sandbox, "container"),
        "io.kubernetes.cri.container-name": config.metadata.name,
        "io.kubernetes.cri.image-name": image,
        "io.kubernetes.cri-o.ContainerName": config.metadata.name,
        "io.kubernetes.cri-o.ContainerID": inputs.container_id,
        "io.kubernetes.cri-o.ImageName": image,
    }


def for_sandbox(sandbox: Sandbox, settings: SpecSettings) -> dict[str, str]:
    """Annotations of a sandbox container: the pod's own, names, and the sizes that VM runtimes plan with."""
    sizes = sandbox.config.resources or Resources()
    return {
        **_passed(sandbox.config.annotations, settings),
        **_pod_names(sandbox, "sandbox"),
        "io.kubernetes.cri.sandbox-log-directory": sandbox.config.log_directory,
        "io.kubernetes.cri.sandbox-cpu-period": str(sizes.cpu_period),
        "io.kubernetes.cri.sandbox-cpu-quota": str(sizes.cpu_quota),
        "io.kubernetes.cri.sandbox-cpu-shares": str(sizes.cpu_shares),
        "io.kubernetes.cri.sandbox-memory": str(sizes.memory_limit_in_bytes),
    }


def _pod_names(sandbox: Sandbox, kind: str) -> dict[str, str]:
    meta = sandbox.config.metadata
    return {
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox.id,
        "io.kubernetes.cri.sandbox-name": meta.name,
        "io.kubernetes.cri.sandbox-namespace": meta.namespace,
        "io.kubernetes.cri.sandbox-uid": meta.uid,
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.SandboxID": sandbox.id,
        "io.kubernetes.cri-o.KubeName": meta.name,
        "io.kubernetes.cri-o.Namespace": meta.namespace,
    }


def _passed(annotations: Mapping[str, str], settings: SpecSettings) -> dict[str, str]:
    return {
        key: value
        for key, value in annotations.items()
        if not key.startswith(_OURS) and (not key.startswith(RUNTIME_CONTROL) or key.startswith(settings.allowed_annotations or "\0"))
    }
