"""What a runtime backend can do: abilities, how each is there, and what a probe found. Part of the port in ``runtime``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Support(StrEnum):
    """How an ability is there (field-notes: ``features`` alone can lie, so each is probed)."""

    SUPPORTED = "supported"
    EMULATED = "emulated"
    UNSUPPORTED = "unsupported"


class Ability(StrEnum):
    """Abilities that a backend declares. Core refuses a request that needs an unsupported one with Unsupported."""

    EXEC = "exec"
    TTY = "tty"
    SECCOMP = "seccomp"
    APPARMOR = "apparmor"
    SELINUX = "selinux"
    USER_NAMESPACES = "user-namespaces"
    RECURSIVE_READ_ONLY = "recursive-read-only-mounts"
    IDMAPPED_MOUNTS = "idmapped-mounts"
    SYSTEMD_CGROUP = "systemd-cgroup"
    SHARED_PID = "shared-pid-namespace"
    UPDATE = "update"
    PAUSE = "pause"
    CHECKPOINT = "checkpoint"
    PORT_FORWARD = "port-forward"
    STATS = "stats"
    NET_DEVICES = "net-devices"
    RDT_SCHEMATA = "rdt-schemata"
    HOST_NETWORK = "host-network"
    """Pods in the node's network."""
    HOST_NAMESPACES = "host-namespaces"
    """Pods and containers in the node's PID and IPC namespaces."""
    TARGET_PID = "target-pid-namespace"
    """Containers in the PID namespace of another container of their pod."""
    SYSCTLS = "sysctls"
    """Sysctls of the pod, as its programs see them."""
    MOUNT_PROPAGATION = "mount-propagation"
    """Mounts that spread between the container and the node after its start."""
    DEVICES = "devices"
    """Devices of the node in containers that ask for them."""
    HOST_DEVICES = "host-devices"
    """All devices of the node in a privileged container."""
    START_CONTAINER_HOOKS = "start-container-hooks"
    """OCI hooks that run in the container's namespaces."""
    SECCOMP_NOTIFY = "seccomp-notify"
    CONTAINER_LIMITS = "container-limits"
    """Limits of one container alone, not of its pod as a whole. Nothing is refused for want of it: the pod's limits hold."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One ability as probed: ``detail`` says how it was verified or why it is missing."""

    support: Support
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeFeatures:
    """What the probe found: the binary's own version line, its path, and each ability.

    ``annotations`` are patterns of annotations that steer this runtime and that it takes from every pod, as in a handler's
    ``allowed_annotations``, which adds to them.
    """

    version: str
    path: str
    abilities: Mapping[Ability, Feature]
    annotations: tuple[str, ...] = ()

    def has(self, ability: Ability) -> bool:
        """Whether ``ability`` is supported or emulated."""
        found = self.abilities.get(ability)
        return found is not None and found.support is not Support.UNSUPPORTED

    def lacks(self, ability: Ability) -> str | None:
        """Why ``ability`` is declared missing; None for one that is there or that the backend says nothing of."""
        found = self.abilities.get(ability)
        if found is None or found.support is not Support.UNSUPPORTED:
            return None
        return found.detail or "its runtime can't"
