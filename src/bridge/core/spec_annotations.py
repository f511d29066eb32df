"""Annotations of the OCI spec: the pod's and container's own, and the names by which runtimes know a pod's parts.

Runtimes steer themselves by some annotations (systemd properties with runc, CVE-2024-3154; hooks with crun; the VM with
Kata), so those only pass where the operator allows them for the handler, by a pattern that names their family: "*" opens none.
Of the pod's annotations a container gets what is allowed; then come its own, then ours, and of one key the last counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

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
_CONTROL_KEYS = frozenset(("bundle",))
"""Whole keys of that kind: runc keeps the container's own bundle among its annotations."""
_OURS = ("io.kubernetes.cri.", "io.kubernetes.cri-o.")


def for_container(inputs: ContainerInputs, settings: SpecSettings) -> dict[str, str]:
    """Annotations of a container: its own, then both families of names (containerd's and CRI-O's)."""
    sandbox, config = inputs.sandbox, inputs.config
    image = config.image.user_specified_image or config.image.image or inputs.image.id
    return {
        **{key: value for key, value in sandbox.config.annotations.items() if _foreign(key) and permits(settings.allowed_annotations, key)},
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


def permits(patterns: Iterable[str], key: str) -> bool:
    """Whether an annotation may steer the runtime. A pattern is a prefix, or a glob when it has ``*``, ``?`` or ``[``."""
    family = _family(key)
    return any(pattern.startswith(family) and _fits(pattern, key) for pattern in patterns)


def withheld(annotations: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The keys that would steer a runtime and may not."""
    known = tuple(patterns)
    return [key for key in annotations if _family(key) and not permits(known, key)]


def _family(key: str) -> str:
    """What a pattern must begin with to let ``key`` through; "" for one that steers nothing."""
    if not key.startswith(RUNTIME_CONTROL):
        return key if key in _CONTROL_KEYS else ""
    return next(family for family in RUNTIME_CONTROL if key.startswith(family))


def _fits(pattern: str, key: str) -> bool:
    return fnmatchcase(key, pattern) if set("*?[") & set(pattern) else key.startswith(pattern)


def _foreign(key: str) -> bool:
    return not key.startswith(_OURS)


def _passed(annotations: Mapping[str, str], settings: SpecSettings) -> dict[str, str]:
    barred = set(withheld(annotations, settings.allowed_annotations))
    return {key: value for key, value in annotations.items() if _foreign(key) and key not in barred}
