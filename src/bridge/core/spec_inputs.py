"""What a spec is built from: frozen inputs, so that building is a pure function of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.core.entities import Sandbox, User
from bridge.core.model import ContainerConfig, ProfileType
from bridge.core.security import DEFAULT_CAPABILITIES
from bridge.core.selinux import Labels
from bridge.ports.handlers import HandlerPolicy
from bridge.ports.images import Image

CGROUPFS = "cgroupfs"
SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class SpecSettings:
    """The operator's choices. ``cgroup_driver`` is "cgroupfs" or "systemd"; ``pids_limit`` 0 means none.

    ``default_env`` holds "KEY=value" entries below the image's own. ``seccomp_profile`` replaces the built-in default (an
    OCI linux.seccomp object or Docker's dialect of it). ``seccomp_when_unset`` is what a request without profile gets.
    ``seccomp_native_only`` has the built-in profile kill 32-bit programs on 64-bit hosts, which makes each start and exec
    cheaper. ``seccomp_profile_root`` holds the profiles that requests may name. ``apparmor_profile`` is the profile of
    RuntimeDefault, "" for none; ``apparmor_root`` is where AppArmor's files are looked up. ``default_cgroup_parent`` serves
    pods that name none. ``allowed_annotations`` are patterns of annotations that pods may pass on (see spec_annotations),
    those of one handler: ``of_handler`` fills them in. ``blockio_classes`` are OCI blockIO objects by name;
    ``refuse_missing_classes`` tells what becomes of a pod that names a class of block I/O or RDT which this host can't give.
    """

    cgroup_driver: str = CGROUPFS
    default_env: tuple[str, ...] = ()
    seccomp_profile: Mapping[str, Any] | None = None
    seccomp_when_unset: ProfileType = ProfileType.UNCONFINED
    seccomp_native_only: bool = False
    seccomp_profile_root: Path = Path("/var/lib/kubelet/seccomp")
    apparmor_profile: str = ""
    apparmor_root: Path = Path("/")
    pids_limit: int = 0
    default_cgroup_parent: str = ""
    default_capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    allowed_annotations: tuple[str, ...] = ()
    cgroup_prefix: str = "cri-bridge"
    blockio_classes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuse_missing_classes: bool = True

    def of_handler(self, policy: HandlerPolicy) -> SpecSettings:
        """These, for the pods of one handler."""
        return replace(self, allowed_annotations=policy.allowed_annotations) if policy.allowed_annotations else self


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device found on the host for a container: ``kind`` is "c", "b" or "p" (a fifo), ``mode`` its permission bits, ``source``
    its path on the host."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    permissions: str = "rwm"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """What one of config.mounts became: the bind mount of ``source``, a path of the host, with these OCI mount ``options``.

    ``extra`` are further keys of the OCI mount object, such as uidMappings. ``resolved`` is the host path with its symbolic
    links followed, for status.
    """

    source: str
    options: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    resolved: str = ""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What was found of the profiles that a request names.

    ``seccomp`` is the parsed file of a Localhost request; ``apparmor`` the loaded profile to set, "" for none.
    """

    seccomp: Mapping[str, Any] | None = None
    apparmor: str = ""


@dataclass(frozen=True, slots=True)
class ContainerInputs:
    """Everything about one container. Paths are the host's.

    ``sandbox_dir`` holds hostname, hosts, resolv.conf and shm/. ``pid_target`` is /proc/PID/ns/pid of the target in TARGET
    mode. ``devices`` are the nodes behind config.devices (all of the host's when privileged), resolved by the caller.
    ``confinement`` holds the profiles that the request names. ``volumes`` holds one entry for each of config.mounts.
    ``added_mounts`` are whole OCI mounts from elsewhere (generated files, CDI); each gives way to one of
    config.mounts at the same destination, and replaces a standard one.
    """

    container_id: str
    sandbox: Sandbox
    config: ContainerConfig
    image: Image
    rootfs: Path
    sandbox_dir: Path
    user: User
    home: str
    pid_target: Path | None = None
    devices: tuple[DeviceNode, ...] = ()
    confinement: Confinement = Confinement()
    volumes: tuple[Volume, ...] = ()
    added_mounts: tuple[Mapping[str, Any], ...] = ()
    labels: Labels = field(default_factory=Labels)
