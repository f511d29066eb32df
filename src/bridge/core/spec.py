"""From CRI config, image config and host facts to an OCI runtime spec: pure functions, no I/O.

This module joins the parts (process, mounts, resources, annotations, security); each part knows its own CRI messages and
names the CRI field when it refuses. Source: OCI runtime spec 1.0.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.core import (
    pod_limits,
    pod_namespaces,
    resource_classes,
    seccomp,
    security,
    selinux,
    spec_annotations,
    spec_devices,
    spec_mounts,
    spec_process,
    spec_resources,
    users,
)
from bridge.core.entities import Sandbox, User
from bridge.core.model import ContainerSecurity, NamespaceMode, Resources
from bridge.core.spec_inputs import Confinement, ContainerInputs, DeviceNode, SpecSettings
from bridge.core.spec_resources import cgroups_path
from bridge.errors import InvalidRequest
from bridge.host.facts import HostFacts

__all__ = [
    "SANDBOX_PID",
    "Confinement",
    "ContainerInputs",
    "DeviceNode",
    "HostFacts",
    "SpecSettings",
    "build_container",
    "build_sandbox",
    "cgroups_path",
    "process_for_exec",
]

OCI_VERSION = "1.0.2"
SANDBOX_PID = "@sandbox"
"""Placeholder path of the pod's PID namespace; the backend puts its sandbox process's there."""

_NOBODY = User(uid=65535, gid=65535)
_SANDBOX_OOM_SCORE = -998
_CONTEXT = "config.linux.security_context"


def build_container(inputs: ContainerInputs, facts: HostFacts, settings: SpecSettings) -> dict[str, Any]:
    """The spec of one container. Raises InvalidRequest, Unsupported or Denied naming the CRI field."""
    config, request = inputs.config, inputs.config.security
    if request.privileged and not inputs.sandbox.config.security.privileged:
        raise InvalidRequest("a privileged container needs a privileged pod sandbox", field=f"{_CONTEXT}.privileged")
    process = spec_process.build(inputs, facts, settings)
    mounts, propagation = spec_mounts.build(inputs)
    masked, readonly = security.hidden_paths(request, user_namespace=pod_namespaces.user_namespace(inputs.sandbox.config) is not None)
    linux: dict[str, Any] = {
        "namespaces": _container_namespaces(inputs, facts),
        **pod_namespaces.oci_mappings(inputs.sandbox.config),
        "cgroupsPath": _cgroup(inputs.sandbox, settings, settings.cgroup_prefix, inputs.container_id),
        "resources": spec_resources.build(config.resources, inputs.devices, request.privileged, facts, settings),
    }
    _add_classes(inputs, facts, settings, linux)
    if masked:
        linux["maskedPaths"] = masked
    if readonly:
        linux["readonlyPaths"] = readonly
    if propagation:
        linux["rootfsPropagation"] = propagation
    _wear(inputs.labels, process, linux)
    if inputs.devices:
        linux["devices"] = spec_devices.nodes(inputs.devices, inputs.sandbox)
    if not request.privileged:
        bounding = process["capabilities"]["bounding"]
        profile = seccomp.for_container(request.seccomp, inputs.confinement.seccomp, bounding, facts, settings)
        if profile is not None:
            linux["seccomp"] = profile
    return {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": str(inputs.rootfs), "readonly": request.readonly_rootfs},
        "mounts": mounts,
        "annotations": spec_annotations.for_container(inputs, settings),
        "linux": linux,
    }


def _add_classes(inputs: ContainerInputs, facts: HostFacts, settings: SpecSettings, linux: dict[str, Any]) -> None:
    if block_io := resource_classes.block_io(inputs, settings):
        linux["resources"]["blockIO"] = block_io
    if rdt := resource_classes.rdt(inputs, facts, settings):
        linux["intelRdt"] = rdt


def build_sandbox(
    sandbox: Sandbox,
    rootfs: Path,
    argv: Sequence[str],
    facts: HostFacts,
    settings: SpecSettings,
    confinement: Confinement | None = None,
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """The sandbox container: one idle process that owns the pod's PID namespace, with no privilege at all.

    ``confinement`` is None after a restart: the process runs already, and its profiles need not be found again. With ``whole`` it
    stands for the pod, whose containers run inside: it has the pod's limits and its hostname.
    """
    wanted = sandbox.config.security
    process = _sandbox_process(sandbox, argv, facts)
    masked, readonly = security.hidden_paths(ContainerSecurity())
    linux: dict[str, Any] = {
        "namespaces": [*_pod_namespaces(sandbox), {"type": "mount"}, {"type": "pid"}, *_cgroup_namespace(False, facts)],
        **pod_namespaces.oci_mappings(sandbox.config),
        "cgroupsPath": _cgroup(sandbox, settings, f"{settings.cgroup_prefix}-sandbox", sandbox.id),
        "resources": spec_resources.build(pod_limits.resources(sandbox) if whole else Resources(cpu_shares=2), (), False, facts, settings),
        "maskedPaths": masked,
        "readonlyPaths": readonly,
    }
    _wear(selinux.of_sandbox(sandbox), process, linux)
    if confinement is not None and not wanted.privileged:
        profile = seccomp.for_sandbox(wanted.seccomp, confinement.seccomp, facts, settings)
        if profile is not None:
            linux["seccomp"] = profile
        if confinement.apparmor:
            process["apparmorProfile"] = confinement.apparmor
    return {
        **({"hostname": sandbox.hostname} if whole else {}),
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": str(rootfs), "readonly": True},
        "mounts": spec_mounts.kernel_mounts(False)[:2],
        "annotations": spec_annotations.for_sandbox(sandbox, settings),
        "linux": linux,
    }


def _sandbox_process(sandbox: Sandbox, argv: Sequence[str], facts: HostFacts) -> dict[str, Any]:
    wanted, nobody = sandbox.config.security, _nobody(sandbox)
    uid = nobody.uid if wanted.run_as_user is None else users.checked_id(wanted.run_as_user, f"{_CONTEXT}.run_as_user")
    gid = nobody.gid if wanted.run_as_group is None else users.checked_id(wanted.run_as_group, f"{_CONTEXT}.run_as_group")
    extra = [users.checked_id(value, f"{_CONTEXT}.supplemental_groups[{index}]") for index, value in enumerate(wanted.supplemental_groups)]
    user = User(uid, gid, tuple(dict.fromkeys([gid, *extra])))
    pod_namespaces.check_user(user, sandbox)
    return {
        "terminal": False,
        "user": spec_process.user_object(user),
        "args": list(argv),
        "env": [f"PATH={spec_process.DEFAULT_PATH}"],
        "cwd": "/",
        "capabilities": security.no_capabilities(),
        "noNewPrivileges": True,
        "oomScoreAdj": spec_resources.oom_score_adj(_SANDBOX_OOM_SCORE, facts),
    }


def process_for_exec(spec: Mapping[str, Any], argv: Sequence[str], tty: bool) -> dict[str, Any]:
    """OCI process object for an exec in the container of ``spec``: same user, environment, capabilities and limits."""
    return spec_process.for_exec(spec, argv, tty)


def _cgroup(sandbox: Sandbox, settings: SpecSettings, prefix: str, identifier: str) -> str:
    parent = sandbox.cgroup_parent or sandbox.config.cgroup_parent or settings.default_cgroup_parent
    return cgroups_path(settings.cgroup_driver, parent, prefix, identifier)


def _container_namespaces(inputs: ContainerInputs, facts: HostFacts) -> list[dict[str, str]]:
    pod_namespaces.check_container(inputs.config, inputs.sandbox)
    pod_namespaces.check_user(inputs.user, inputs.sandbox)
    return [
        *_pod_namespaces(inputs.sandbox),
        {"type": "mount"},
        *_pid_namespace(inputs),
        *_cgroup_namespace(inputs.config.security.privileged, facts),
    ]


def _pod_namespaces(sandbox: Sandbox) -> list[dict[str, str]]:
    """The pod's pinned namespaces; one that isn't there is the host's. The pod decides, not its containers."""
    kinds = (("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    return [{"type": kind, "path": sandbox.namespaces[key]} for kind, key in kinds if key in sandbox.namespaces]


def _pid_namespace(inputs: ContainerInputs) -> list[dict[str, str]]:
    """POD means the pod's, whichever that is: shared, the node's, or (POD is also the CRI's unset value) one's own."""
    mode = inputs.config.security.namespaces.pid
    if mode is NamespaceMode.POD:
        pod = inputs.sandbox.config.security.namespaces.pid
        if pod is NamespaceMode.POD:
            return [{"type": "pid", "path": SANDBOX_PID}]
        mode = pod
    if mode is NamespaceMode.TARGET:
        if inputs.pid_target is None:
            raise InvalidRequest("names no running container of this pod", field=f"{_CONTEXT}.namespace_options.target_id")
        return [{"type": "pid", "path": str(inputs.pid_target)}]
    return [] if mode is NamespaceMode.NODE else [{"type": "pid"}]


def _cgroup_namespace(privileged: bool, facts: HostFacts) -> list[dict[str, str]]:
    """Private on cgroup v2, as containerd and CRI-O do; on v1 the runtime bind-mounts the container's own part."""
    return [{"type": "cgroup"}] if facts.cgroup_v2 and not privileged else []


def _wear(labels: selinux.Labels, process: dict[str, Any], linux: dict[str, Any]) -> None:
    """The SELinux labels of a spec: of its process, and of the file systems that the runtime mounts for it."""
    if labels.process:
        process["selinuxLabel"] = labels.process
    if labels.mount:
        linux["mountLabel"] = labels.mount


def _nobody(sandbox: Sandbox) -> User:
    """Who an idle process runs as: no account, and in a small user namespace its last id."""
    user = pod_namespaces.user_namespace(sandbox.config)
    if user is None:
        return _NOBODY
    return User(uid=min(_NOBODY.uid, user.uids[0].length - 1), gid=min(_NOBODY.gid, user.gids[0].length - 1))
