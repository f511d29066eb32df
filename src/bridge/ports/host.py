"""What the server offers to a runtime backend: directories, the cgroup driver, the pause process, and the monitor.

A plugin's ``open`` gets one HostContext. The monitor is reached through a provider because its connection is replaced
when the monitor had to be started anew: ask for it at each use, never keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bridge.errors import ConfigError
from bridge.host.cgroup_paths import CgroupDriver
from bridge.ports.runtime import ContainerIO, ExitStatus, SandboxSpec


class Task(Protocol):
    """What the monitor holds of one container or exec; ``exit`` is None while it runs, ``pid`` 0 while it is being launched."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str:
        """container, told (a container in a sandbox), exec, held or spool."""
        ...

    @property
    def pid(self) -> int: ...
    @property
    def exit(self) -> ExitStatus | None: ...


class Monitor(Protocol):
    """The process that owns stdio, logs and exits (bridge.monitor.client.MonitorClient). Every call may raise MonitorGone."""

    async def launch(
        self,
        task_id: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        pid_file: Path,
        io: ContainerIO,
        env: Mapping[str, str] | None = None,
        console_socket: Path | None = None,
        timeout: float,
        on_failure: Sequence[str] = (),
        before: Sequence[Sequence[str]] = (),
        exit_argv: Sequence[str] = (),
    ) -> int:
        """Run a runtime verb that detaches, adopt the process in ``pid_file`` and return its pid. Raises LaunchFailed.

        The verbs of ``before`` run first, without the container's stdio. With ``exit_argv`` the process is the sandbox's that the
        container lives in: that command waits for its exit and tells it as ``{"exitStatus": N}`` on stdout.
        """
        ...

    async def exec(
        self,
        exec_id: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        pid_file: Path,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        env: Mapping[str, str] | None = None,
        timeout: float,
    ) -> int:
        """The same for an exec, which gets the caller's descriptors and dies with the connection. Raises LaunchFailed."""
        ...

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        """Make and drain fifos in ``directory`` for a process that another holds, until ``ended`` and ``forget``. Repeatable."""
        ...

    async def ended(self, task_id: str, status: ExitStatus, *, drain: float) -> None:
        """Tell a held task's exit; returns when its output has ended, at most ``drain`` seconds later. Repeatable."""
        ...

    async def stdin_closed(self, task_id: str) -> None:
        """Wait until a held task's stdin was closed on this side."""
        ...

    async def spool(self, task_id: str, fifo: Path, path: Path) -> None:
        """Keep ``fifo`` read and the last of it in ``path``, until ``forget``. Repeatable."""
        ...

    async def close_stdin(self, task_id: str) -> None: ...
    async def wait(self, task_id: str) -> ExitStatus: ...
    async def kill(self, task_id: str, signal: int) -> None: ...
    async def reopen_log(self, task_id: str) -> None: ...
    async def resize(self, task_id: str, width: int, height: int) -> None: ...
    async def attach(
        self, task_id: str, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None] = ...
    ) -> None:
        """Copy until the output ends; ``attached`` is called once the descriptors are sent. Cancel to detach."""
        ...

    async def adopt(
        self, task_id: str, pid: int, start_ticks: int, *, exit_argv: Sequence[str] = (), cwd: Path = ..., env: Mapping[str, str] = ...
    ) -> None:
        """Watch a process that another monitor launched (``start_ticks`` tells it from a later one), or with ``exit_argv`` a container
        in it, as ``launch`` does."""
        ...

    async def tasks(self, only: str = "") -> Sequence[Task]: ...
    async def forget(self, task_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class PauseProcess:
    """The process of a sandbox that needs one: a directory with a static binary, and its argv."""

    rootfs: Path
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RuntimeTimeouts:
    """Deadlines in seconds. A handler's options may override them.

    ``trial`` is for a whole container, also on a node that is busy with all else that starts with it: who misses it disables the handler.
    """

    create: float = 60.0
    start: float = 60.0
    exec: float = 30.0
    delete: float = 30.0
    kill: float = 10.0
    probe: float = 10.0
    trial: float = 30.0


AdjustSpec = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
"""(OCI spec, pod facts, container facts) → OCI spec; never fails."""


def unadjusted(spec: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]) -> Mapping[str, Any]:
    """The AdjustSpec of a host without adjusting plugins."""
    del pod, container
    return spec


@dataclass(frozen=True, slots=True)
class HostContext:
    """Given to each handler when it is opened.

    ``monitor()`` returns the live monitor or raises MonitorGone. ``state_root`` (below /run: vanishes at reboot) and
    ``cache_dir`` (survives, and programs in it may be executed) are for backends; each handler uses a directory of its own
    name in them. ``run_root`` is short enough for unix sockets below it. ``adjust_spec`` passes a container's OCI spec, with
    the facts of its pod and its own, through the plugins that want to change it; ``adjusted`` gives it those facts.
    """

    monitor: Callable[[], Monitor]
    state_root: Path
    run_root: Path
    cache_dir: Path
    cgroup_driver: CgroupDriver
    pause: PauseProcess | None = None
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)
    adjust_spec: AdjustSpec = unadjusted

    def driver(self, chosen: str | None) -> CgroupDriver:
        """Of a handler whose option ``cgroup_driver`` is ``chosen`` (None: the server's). Raises ConfigError.

        The path of a slice can be told to a runtime that makes cgroups itself, but not any path to systemd.
        """
        if chosen == CgroupDriver.SYSTEMD and self.cgroup_driver is not CgroupDriver.SYSTEMD:
            raise ConfigError(
                'options.cgroup_driver: can\'t be "systemd" where runtime.cgroup_driver is "cgroupfs": the pods\' cgroups are no slices'
            )
        return CgroupDriver(chosen) if chosen else self.cgroup_driver

    def adjusted(self, oci: Mapping[str, Any], container_id: str, pod: SandboxSpec, handler: str) -> Mapping[str, Any]:
        """The OCI spec of a container of ``pod`` as the plugins want it (docs/writing-a-runtime.md, "Hooks"); never fails."""
        facts = {
            "id": pod.id,
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "handler": handler,
            "cgroup_parent": pod.cgroup_parent,
            "labels": dict(pod.labels),
            "annotations": dict(pod.annotations),
        }
        return self.adjust_spec(oci, facts, {"id": container_id})
