"""What a client asked for, as frozen values: PodConfig and ContainerConfig and their parts.

The fields follow CRI v1 (PodSandboxConfig, ContainerConfig) by name; ``api/convert`` fills them in and has checked what a
single field can tell (required names, ranges). Everything is hashable-by-content JSON-able data (see core/records).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bridge.ports.network import PortMapping


class NamespaceMode(StrEnum):
    """CRI NamespaceMode."""

    POD = "POD"
    CONTAINER = "CONTAINER"
    NODE = "NODE"
    TARGET = "TARGET"


class ProfileType(StrEnum):
    """CRI SecurityProfile.ProfileType."""

    RUNTIME_DEFAULT = "RuntimeDefault"
    UNCONFINED = "Unconfined"
    LOCALHOST = "Localhost"


class MountPropagation(StrEnum):
    """CRI MountPropagation."""

    PRIVATE = "PROPAGATION_PRIVATE"
    HOST_TO_CONTAINER = "PROPAGATION_HOST_TO_CONTAINER"
    BIDIRECTIONAL = "PROPAGATION_BIDIRECTIONAL"


class GroupsPolicy(StrEnum):
    """CRI SupplementalGroupsPolicy."""

    MERGE = "Merge"
    STRICT = "Strict"


@dataclass(frozen=True, slots=True)
class IDMapping:
    """One range of a user-namespace mapping."""

    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """CRI UserNamespace; mode POD (mapped) or NODE (the host's)."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IDMapping, ...] = ()
    gids: tuple[IDMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """CRI NamespaceOption. The CRI's zero value is POD for each."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    """CRI SecurityProfile, for seccomp and AppArmor."""

    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class SELinuxOptions:
    """CRI SELinuxOption."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """CRI Capability: names with or without CAP_, or ALL."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """CRI LinuxContainerResources; 0 or "" means unset. Memory in bytes, cpu period and quota in microseconds."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[tuple[str, int], ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SandboxSecurity:
    """CRI LinuxSandboxSecurityContext."""

    namespaces: NamespaceOptions = field(default_factory=NamespaceOptions)
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """CRI LinuxContainerSecurityContext."""

    capabilities: Capabilities | None = None
    privileged: bool = False
    namespaces: NamespaceOptions = field(default_factory=NamespaceOptions)
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class DNSConfig:
    """CRI DNSConfig."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodMetadata:
    """CRI PodSandboxMetadata; the four together identify one attempt to run a pod."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class PodConfig:
    """CRI PodSandboxConfig (its Linux half flattened in)."""

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DNSConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: Resources | None = None
    resources: Resources | None = None
    security: SandboxSecurity = field(default_factory=SandboxSecurity)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """CRI ImageSpec."""

    image: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """CRI Mount."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """CRI Device; permissions are a subset of "rwm"."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """CRI ContainerMetadata."""

    name: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """CRI ContainerConfig (its Linux half flattened in). ``stop_signal`` is a name such as SIGTERM, or "" for the image's."""

    metadata: ContainerMetadata
    image: ImageSpec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[MountRequest, ...] = ()
    devices: tuple[DeviceRequest, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources | None = None
    security: ContainerSecurity = field(default_factory=ContainerSecurity)
    stop_signal: str = ""
