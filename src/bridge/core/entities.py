"""The records core keeps: Sandbox and Container, frozen. Only ``core/store`` makes new ones, by applying an event.

Times are Unix nanoseconds, 0 when it has not happened. ``revision`` grows with each change of the object, so that an
encoded copy can be kept with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bridge.core.model import ContainerConfig, PodConfig, Resources


class SandboxState(StrEnum):
    """creating → ready → stopped → removing; the CRI shows ready as READY and everything else as NOTREADY."""

    CREATING = "creating"
    READY = "ready"
    STOPPED = "stopped"
    REMOVING = "removing"


class ContainerState(StrEnum):
    """creating → created → starting → running → exited → removing; the CRI shows starting as CREATED."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class User:
    """The resolved identity of a container's first process."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One pod sandbox. ``handler`` is the resolved handler, ``runtime_handler`` what the client named ("" = default).

    ``hostname`` is the one its containers see ("" in records of version 0.1). ``namespaces`` maps net, ipc, uts to pin
    paths; ``cgroup_owned`` is the topmost part of ``cgroup_parent`` that we made and remove again, "" when it was there.
    ``overhead`` and ``resources`` are the pod's, as last updated. ``selinux_process`` and ``selinux_mount`` are its labels,
    "" where SELinux is not used. ``opening`` is how its handler was opened (bridge.ports.handlers), None in records of version 0.1.
    ``unremoved`` is why it is still here though it was to be removed, "" for everyone else; such a record holds no name (core/leftovers).
    ``restoring`` is the unpacked archive while RestorePod makes it from one; a server that ends meanwhile leaves it to be removed.
    """

    id: str
    config: PodConfig
    handler: str
    runtime_handler: str
    state: SandboxState
    created_at: int
    boot_id: str
    ips: tuple[str, ...] = ()
    attachment: Mapping[str, Any] | None = None
    namespaces: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    cgroup_owned: str = ""
    backend: Mapping[str, Any] | None = None
    pid: int = 0
    overhead: Resources | None = None
    resources: Resources | None = None
    selinux_process: str = ""
    selinux_mount: str = ""
    hostname: str = ""
    opening: Mapping[str, Any] | None = None
    revision: int = 0
    unremoved: str = ""
    restoring: str = ""

    @property
    def name_key(self) -> str:
        """What must be unique among live sandboxes."""
        if self.unremoved:
            return self.id
        meta = self.config.metadata
        return f"{meta.name}_{meta.namespace}_{meta.uid}_{meta.attempt}"


@dataclass(frozen=True, slots=True)
class Container:
    """One container. ``image_id`` is the config digest; ``image_ref`` what ContainerStatus.image_ref reports.

    ``mount_images`` holds the image id for each of config.mounts, "" for a mount of the host; it is empty when no mount is an image.
    ``resources`` are the limits in force, after clamps and updates; None in records of releases that did not keep them.
    ``unremoved`` is as of a sandbox. ``paused`` while it stands still for a checkpoint. ``checkpoint`` is the directory with the images of
    its processes that its start restores, "" for one that begins at its beginning.
    """

    id: str
    sandbox_id: str
    config: ContainerConfig
    image_id: str
    image_ref: str
    state: ContainerState
    created_at: int
    boot_id: str
    log_path: str = ""
    stop_signal: str = "SIGTERM"
    user: User = field(default_factory=User)
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int = 0
    backend: Mapping[str, Any] | None = None
    resources: Resources | None = None
    revision: int = 0
    mount_images: tuple[str, ...] = ()
    unremoved: str = ""
    paused: bool = False
    checkpoint: str = ""

    @property
    def name_key(self) -> str:
        """What must be unique among live containers of one sandbox."""
        if self.unremoved:
            return self.id
        return f"{self.sandbox_id}_{self.config.metadata.name}_{self.config.metadata.attempt}"
