"""The port to a runtime backend: what core asks of runc, gVisor, Kata and whatever comes next.

Lifecycle of a sandbox: ``RuntimeBackend.create_sandbox`` → ``SandboxHandle`` → any number of ``create_container`` →
``ContainerHandle`` … → ``stop`` → ``delete``. After a restart of the server ``load_sandbox`` and ``load_container``
rebuild the handles from the opaque, versioned ``record`` that each handle offers and core stored.

Rules for implementers: a create or start that fails or is cancelled leaves nothing of its own behind; every stop, kill and
delete is idempotent and absent means success; a call cancelled half-way can be repeated; errors are ``bridge.errors``
classes; an ability that is missing is declared in ``features``, not stubbed. Every number of bytes, nanoseconds and every
path is what its name says; pids are in the host's PID namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bridge.host.cgroup_stats import CgroupStats
from bridge.ports.abilities import Ability, Feature, RuntimeFeatures, Support

__all__ = [
    "CONTAINER_PID_NAMESPACE",
    "SANDBOX_PID_NAMESPACE",
    "Ability",
    "ContainerHandle",
    "ContainerIO",
    "ContainerSpec",
    "ExecProcess",
    "ExecSpec",
    "ExitStatus",
    "Feature",
    "NamespacePaths",
    "Record",
    "RemoteTerminal",
    "RuntimeBackend",
    "RuntimeFeatures",
    "SandboxHandle",
    "SandboxKind",
    "SandboxSpec",
    "Support",
]

Record = Mapping[str, Any]
"""JSON-able state of a backend; carries its own ``"v"`` version. Core stores it and never reads it."""


SANDBOX_PID_NAMESPACE = "@sandbox"
"""Path of the pid namespace in ``ContainerSpec.oci`` that means "the sandbox's": the backend puts in the real one, known to it alone."""
CONTAINER_PID_NAMESPACE = "@container/"
"""The same followed by a container's id: that container's, in a sandbox whose namespaces the host doesn't know (kinds but NAMESPACES)."""


class SandboxKind(StrEnum):
    """What a sandbox is made of: pinned namespaces only, a sandbox container, or a virtual machine."""

    NAMESPACES = "namespaces"
    CONTAINER = "container"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class NamespacePaths:
    """Pinned namespaces of a pod as bind-mounted files; None where the host's own (or, for pid, none yet) is meant."""

    net: Path | None = None
    ipc: Path | None = None
    uts: Path | None = None
    user: Path | None = None


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a backend needs to make a sandbox.

    ``state_dir`` exists, is private to this sandbox (below /run) and may hold the backend's bundle and sockets.
    ``oci`` is the OCI runtime spec of the sandbox container, given when the backend's kind is not NAMESPACES or when
    ``shared_pid`` asks for a process that owns the pod's PID namespace; its root.path is ready. For another kind than NAMESPACES it
    stands for the whole pod: its hostname, and in linux.resources the pod's limits with its overhead. ``cgroup`` is the pod's own
    cgroup from the hierarchies' root, "" for a pod without one, which shares ``cgroup_parent`` with others.
    ``ips`` are the pod's addresses, which a guest takes over; ``sysctls`` are those asked for, which the server has set in the
    pod's namespaces and a kernel of the pod's own has yet to get. For a VM ``state_dir`` is on a shared mount, so that what is
    mounted below it later reaches a shim that has a mount namespace of its own. ``restore`` is where what a handle's checkpoint_pod
    wrote lies, for a pod that goes on there once its containers, whose ``restore`` is set too, have been started.
    """

    id: str
    name: str
    namespace: str
    uid: str
    hostname: str
    state_dir: Path
    namespaces: NamespacePaths
    shared_pid: bool
    cgroup_parent: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    oci: Mapping[str, Any] | None = None
    ips: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    cgroup: str = ""
    restore: Path | None = None


@dataclass(frozen=True, slots=True)
class ContainerIO:
    """Stdio of a container: ``log_path`` None means output is discarded after attach clients got it.

    ``owner`` is the host's uid and gid of the container's root where that is not the host's: its pipes are theirs, so that the
    container may open /dev/stdout again.
    """

    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log_path: Path | None = None
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a backend needs to make a container. ``bundle`` exists and is private; ``oci`` root.path is mounted.

    ``restore`` is where the images of its processes lie, for a container that goes on where a checkpoint was made: its start restores
    and then removes them (bridge.ports.checkpoints).

    In a pod with a shared PID namespace, ``oci`` has ``{"type": "pid", "path": SANDBOX_PID_NAMESPACE}``; a container in another one's
    has that of its process, or for kinds but NAMESPACES CONTAINER_PID_NAMESPACE and its id.
    """

    id: str
    sandbox_id: str
    bundle: Path
    oci: Mapping[str, Any]
    io: ContainerIO
    restore: Path | None = None


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended. ``code`` is 0–255 (128+signal when killed); ``at_ns`` is Unix time in nanoseconds."""

    code: int
    signal: int | None = None
    oom_killed: bool = False
    at_ns: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A process to run in a running container.

    ``process`` is an OCI process object (args, env, cwd, user, terminal …). ``stdin``, ``stdout``, ``stderr`` are open
    descriptors of the caller that the process gets as they are (None: /dev/null); the caller closes its copies after
    ``exec`` returned. With ``process["terminal"]`` true, ``console`` is a connected or listening-socket *path* to which
    the runtime sends the pty master (the OCI console-socket protocol); the three descriptors are then None.
    """

    id: str
    process: Mapping[str, Any]
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    console: Path | None = None


class ExecProcess(Protocol):
    """A running exec. The process ends with its owner: ``delete`` kills whatever is left of it, children included."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> ExitStatus: ...
    async def kill(self, signal: int) -> None: ...
    async def delete(self) -> None: ...


@runtime_checkable
class RemoteTerminal(Protocol):
    """An ExecProcess whose terminal is elsewhere: what it hands to the console socket is a socket, and has no size to be set."""

    async def resize(self, width: int, height: int) -> None:
        """Set its terminal's size in columns and rows; one that has ended has none."""
        ...


class ContainerHandle(Protocol):
    """A container of a backend, from created to deleted."""

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> Record: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def cgroup(self) -> str | None:
        """Where the kernel accounts for it, as a path from the hierarchies' root; None when only the backend can tell."""
        ...

    async def start(self) -> int:
        """Start it and return its pid. Raises RuntimeFailed with what the runtime said."""
        ...

    async def kill(self, signal: int, *, all_processes: bool = False) -> None: ...
    async def wait(self) -> ExitStatus:
        """Wait for its exit; returns at once when it has ended (also while the server was away). Many may wait.

        The death of the sandbox is the exit of its containers.
        """
        ...

    async def exec(self, spec: ExecSpec) -> ExecProcess: ...
    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """Copy its output to, and its input from, these pipes until its output ends or their other sides are closed; cancel to detach.

        ``attached`` is called once they are taken over: the caller may close his then. Raises IllegalTransition (its output has
        ended), LimitExceeded (a reader that held the container up for too long), Unsupported (its stdio is lost).
        """
        ...

    async def resize(self, width: int, height: int) -> None:
        """Set its terminal's size in columns and rows. Raises Unsupported without one."""
        ...

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Set the limits that the OCI ``linux.resources`` object names and leave the others; before the start, for the start.

        Raises RuntimeFailed. Some may be in force then: the caller, who knows what was before, sets them back.
        """
        ...

    async def stats(self) -> CgroupStats | None:
        """What it uses, where ``cgroup`` is None because only the backend can tell; None when it can't tell now.

        The server paces its questions (each container once a period while a kubelet asks) and gives up on an answer after three
        seconds. What was asked up to half a second ago may be told again.
        """
        ...

    async def reopen_log(self) -> None: ...
    async def release(self) -> None:
        """After the exit: free the runtime's own state early, so that ``delete`` is cheap. Idempotent."""
        ...

    async def delete(self) -> None:
        """Kill what is left and remove every trace the backend made (runtime state, cgroup, monitor record)."""
        ...


class SandboxHandle(Protocol):
    """A sandbox. One that containers live in may have ``cgroup``: where the host accounts for all of it (a path from the root), or None."""

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> Record: ...
    @property
    def pid(self) -> int | None:
        """Process that owns the pod's PID namespace or guest; None when there is none."""
        ...

    async def create_container(self, spec: ContainerSpec) -> ContainerHandle: ...
    async def load_container(self, spec: ContainerSpec, record: Record) -> ContainerHandle:
        """Handle of a container that existed before the server restarted. NotFound when nothing is left of it."""
        ...

    async def port_forward(self, port: int) -> socket.socket:
        """A connected, non-blocking stream socket to ``port`` of the pod's localhost. Raises Unavailable when nobody listens."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait until the sandbox died by itself, with ``pid`` not None. Never returns for a sandbox without process."""
        ...

    async def stop(self) -> None: ...
    async def delete(self) -> None: ...


class RuntimeBackend(Protocol):
    """One opened handler.

    One whose own options set deadlines may have ``timeouts`` (bridge.ports.host.RuntimeTimeouts): its calls are held to these.
    """

    @property
    def features(self) -> RuntimeFeatures: ...
    @property
    def sandbox_kind(self) -> SandboxKind: ...
    async def create_sandbox(self, spec: SandboxSpec) -> SandboxHandle: ...
    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> SandboxHandle: ...
    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """Kill and remove sandboxes and containers that this server's earlier life made and ``known`` disowns; returns their ids.

        List first and ask afterwards: others are being made meanwhile.
        """
        ...
