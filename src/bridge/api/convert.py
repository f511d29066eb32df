"""Core's records and the image store's to protobuf, and filters to what core's lookups take. No I/O, no decisions.

Requests with a whole configuration are read by ``convert_config``; its two functions are named here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bridge._proto.runtime import v1 as pb
from bridge.api import convert_parts as parts
from bridge.api.convert_config import container_config, pod_config
from bridge.core import model
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.entities import User as CoreUser
from bridge.core.users import MAX_ID
from bridge.ports.images import FsUsage, Image, RegistryAuth

_CREATED, _RUNNING = pb.ContainerState.CONTAINER_CREATED, pb.ContainerState.CONTAINER_RUNNING
_EXITED, _UNKNOWN = pb.ContainerState.CONTAINER_EXITED, pb.ContainerState.CONTAINER_UNKNOWN

STATES: dict[ContainerState, pb.ContainerState] = {
    ContainerState.CREATING: _CREATED,
    ContainerState.CREATED: _CREATED,
    ContainerState.STARTING: _CREATED,
    ContainerState.RUNNING: _RUNNING,
    ContainerState.EXITED: _EXITED,
    ContainerState.REMOVING: _EXITED,
}


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """Conditions of ListPodSandbox, as ``SandboxService.list`` takes them; "" and None mean any."""

    id: str = ""
    ready: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """Conditions of ListContainers, as ``ContainerService.list`` takes them; "" and None mean any."""

    id: str = ""
    sandbox_id: str = ""
    states: frozenset[ContainerState] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


# ---- pods ----


def sandbox_filter(value: pb.PodSandboxFilter | None) -> SandboxFilter:
    """The conditions of ListPodSandbox; a state that nobody knows is, like any but READY, "not ready"."""
    if value is None:
        return SandboxFilter()
    ready = None if value.state is None else value.state.state == pb.PodSandboxState.SANDBOX_READY
    return SandboxFilter(value.id, ready, value.label_selector)


def pod_metadata(config: model.PodConfig) -> pb.PodSandboxMetadata:
    """The identity of a pod."""
    meta = config.metadata
    return pb.PodSandboxMetadata(name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt)


def _pod_state(state: SandboxState) -> pb.PodSandboxState:
    ready = state is SandboxState.READY
    return pb.PodSandboxState.SANDBOX_READY if ready else pb.PodSandboxState.SANDBOX_NOTREADY


def pod_sandbox(sandbox: Sandbox) -> pb.PodSandbox:
    """A sandbox as lists show it."""
    return pb.PodSandbox(
        id=sandbox.id,
        metadata=pod_metadata(sandbox.config),
        state=_pod_state(sandbox.state),
        created_at=sandbox.created_at,
        labels=dict(sandbox.config.labels),
        annotations=dict(sandbox.config.annotations),
        runtime_handler=sandbox.runtime_handler,
    )


def pod_sandbox_status(sandbox: Sandbox) -> pb.PodSandboxStatus:
    """A sandbox's status. A pod in the host's network has no addresses of its own: the kubelet knows the node's.

    Nor has one that was taken off the network: another pod may have them by now.
    """
    first, *others = (sandbox.ips if sandbox.attachment is not None else ()) or ("",)
    return pb.PodSandboxStatus(
        id=sandbox.id,
        metadata=pod_metadata(sandbox.config),
        state=_pod_state(sandbox.state),
        created_at=sandbox.created_at,
        network=pb.PodSandboxNetworkStatus(ip=first, additional_ips=[pb.PodIp(ip=one) for one in others]),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(options=parts.namespaces_message(sandbox.config.security.namespaces)),
        ),
        labels=dict(sandbox.config.labels),
        annotations=dict(sandbox.config.annotations),
        runtime_handler=sandbox.runtime_handler,
    )


# ---- containers ----


def container_filter(value: pb.ContainerFilter | None) -> ContainerFilter:
    """The conditions of ListContainers; no container is ever in CONTAINER_UNKNOWN or in a state nobody knows."""
    if value is None:
        return ContainerFilter()
    wanted = value.state
    states = None if wanted is None else frozenset(state for state, shown in STATES.items() if shown == wanted.state)
    return ContainerFilter(value.id, value.pod_sandbox_id, states, value.label_selector)


def container(record: Container) -> pb.Container:
    """A container as lists show it."""
    config = record.config
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=pb.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
        image=parts.image_spec_message(config.image),
        image_ref=record.image_ref,
        state=STATES[record.state],
        created_at=record.created_at,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        image_id=record.image_id,
    )


def container_status(record: Container) -> pb.ContainerStatus:
    """A container's status. Exit code and reason count only once it has exited."""
    config = record.config
    resources = record.resources or config.resources
    return pb.ContainerStatus(
        id=record.id,
        metadata=pb.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
        state=STATES[record.state],
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=parts.image_spec_message(config.image),
        image_ref=record.image_ref,
        reason=record.reason,
        message=record.message,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        mounts=[_mount(*each) for each in zip(config.mounts, record.mount_images or [""] * len(config.mounts), strict=True)],
        log_path=record.log_path,
        resources=None if resources is None else pb.ContainerResources(linux=parts.resources_message(resources)),
        image_id=record.image_id,
        user=pb.ContainerUser(linux=_user(record.user)),
        stop_signal=parts.signal_message(record.stop_signal),
    )


def _user(user: CoreUser) -> pb.LinuxContainerUser:
    return pb.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=list(user.additional_gids))


def _mount(value: model.MountRequest, image_id: str) -> pb.Mount:
    """A mount as asked for. An image is told by the id that PullImage gives: by that the kubelet knows that it is in use."""
    image = value.image
    if image is not None and image_id:
        image = replace(image, image=image_id, image_ref=image_id)
    return pb.Mount(
        container_path=value.container_path,
        host_path=value.host_path,
        readonly=value.readonly,
        selinux_relabel=value.selinux_relabel,
        propagation=pb.MountPropagation[value.propagation],
        uid_mappings=parts.mapping_messages(value.uid_mappings),
        gid_mappings=parts.mapping_messages(value.gid_mappings),
        recursive_read_only=value.recursive_read_only,
        image=None if image is None else parts.image_spec_message(image),
        image_sub_path=value.image_sub_path,
        mount_options=list(value.mount_options),
    )


# ---- images ----


def image_name(value: pb.ImageSpec | None, where: str = "image") -> str:
    """The image that is asked for, by name or id. Raises InvalidRequest when none is."""
    return parts.required("" if value is None else value.image, f"{where}.image")


def namespace_of(value: pb.PodSandboxConfig | None) -> str:
    """The namespace of the pod that a request is for, "" when it names none."""
    return "" if value is None or value.metadata is None else value.metadata.namespace


def registry_auth(value: pb.AuthConfig | None) -> RegistryAuth | None:
    """Credentials of a pull; None when the request brings none."""
    if value is None:
        return None
    return RegistryAuth(value.username, value.password, value.auth, value.server_address, value.identity_token, value.registry_token)


def image(record: Image) -> pb.Image:
    """An image, with the user that its processes run as: a number, a name, or neither for root.

    A number that is no id stays text, so that whoever asks for it is refused and nothing wraps around (CVE-2024-40635).
    """
    user = record.config.user.partition(":")[0]
    numeric = user.isascii() and user.isdigit() and len(user) <= 10 and int(user) <= MAX_ID
    return pb.Image(
        id=record.id,
        repo_tags=list(record.repo_tags),
        repo_digests=list(record.repo_digests),
        size=record.size,
        uid=pb.Int64Value(value=int(user)) if numeric else None,
        username="" if numeric else user,
        spec=pb.ImageSpec(image=record.id),
        pinned=record.pinned,
    )


def filesystem_usage(usage: FsUsage) -> pb.FilesystemUsage:
    """Space in use, of ImageFsInfo."""
    return pb.FilesystemUsage(
        timestamp=usage.at_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=str(usage.mountpoint)),
        used_bytes=pb.UInt64Value(value=usage.used_bytes),
        inodes_used=pb.UInt64Value(value=usage.inodes_used),
    )


__all__ = [
    "STATES",
    "ContainerFilter",
    "SandboxFilter",
    "container",
    "container_config",
    "container_filter",
    "container_status",
    "filesystem_usage",
    "image",
    "image_name",
    "pod_config",
    "pod_metadata",
    "pod_sandbox",
    "pod_sandbox_status",
    "registry_auth",
    "sandbox_filter",
]
