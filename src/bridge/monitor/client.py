"""The server's side of the monitor: MonitorClient, one connection with any number of calls at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge import log
from bridge.errors import MonitorGone, Unsupported
from bridge.monitor.asking import given, stdio, verb
from bridge.monitor.connection import QUICK_SECONDS, Connection
from bridge.monitor.protocol import LaunchFailed, TaskInfo, exit_from_wire, exit_to_wire, info_from_wire
from bridge.ports.runtime import ContainerIO, ExitStatus

__all__ = ["LaunchFailed", "MonitorClient", "TaskInfo"]

_LAUNCH_MARGIN = 60.0
"""Beyond a launch's own timeout, which the monitor keeps: its clean-up of a failed one."""

_TOO_OLD = "the running monitor is of an older release and can't hold such containers: drain the node and end it"

_logger = log.get("monitor.client")


class MonitorClient(Connection):
    """A connection to the monitor. Calls raise the error class that the monitor names, or MonitorGone when it is lost.

    Cancelling a call gives its request up: a launch or exec under way is then killed, an attach ended, a wait dropped. A launch may
    have succeeded just before its cancel arrived: whoever cancels one kills and forgets the task, or finds it in ``tasks``.
    """

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
        """Run a runtime's detaching verb as a container's start, and return the pid from ``pid_file`` (a host pid).

        The monitor makes the stdio and the log, or with ``io.terminal`` listens on ``console_socket``. ``env`` None: the monitor's
        own. Raises LaunchFailed after everything spawned was killed and ``on_failure`` was run; AlreadyExists, HostError. When
        the connection is lost meanwhile the launch goes on, and a later client finds the task.
        """
        parameters = {
            **verb(task_id, argv, cwd, pid_file, env, timeout),
            **stdio(io),
            "console_socket": console_socket and str(console_socket),
            "on_failure": list(on_failure),
            "before": [list(argv) for argv in before],
            "exit_argv": list(exit_argv),
        }
        if (before or exit_argv) and "told" not in self.abilities:
            raise Unsupported(_TOO_OLD)
        return int((await self.call("launch", parameters, timeout=timeout + _LAUNCH_MARGIN))["pid"])

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
        on_failure: Sequence[str] = (),
    ) -> int:
        """Run a runtime's detaching exec with the caller's descriptors (None: /dev/null), which stay the caller's; returns the pid.

        The process is killed when this connection is lost. Raises LaunchFailed without a tail, AlreadyExists, HostError.
        """
        parameters = verb(exec_id, argv, cwd, pid_file, env, timeout) | {"on_failure": list(on_failure)}
        names, fds = given(stdin, stdout, stderr)
        answer = await self.call("exec", parameters | {"fds": names}, fds, timeout=timeout + _LAUNCH_MARGIN)
        return int(answer["pid"])

    async def share(self) -> None:
        """From now on ``on_event`` is given duplicates of every container's stdio (bridge.monitor.sharing)."""
        await self.call("share", {})

    async def adopt(
        self,
        task_id: str,
        pid: int,
        start_ticks: int,
        *,
        exit_argv: Sequence[str] = (),
        cwd: Path = Path("/"),
        env: Mapping[str, str] = {},
        held: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Have the exit of a process watched that a lost monitor held; ``start_ticks`` (field 22 of /proc/PID/stat) identifies it.

        Its exit is exact where the kernel can tell (Linux ≥ 6.15), else code 255 with reason MonitorLost. ``held`` and ``fds`` are what
        an event ``held`` told of it.
        """
        parameters: dict[str, Any] = {**(held or {}), "task": task_id, "pid": pid, "start_ticks": start_ticks}
        if exit_argv:
            if "told" not in self.abilities:
                raise Unsupported(_TOO_OLD)
            parameters |= {"exit_argv": list(exit_argv), "cwd": str(cwd), "env": dict(env)}
        await self.call("adopt", parameters, fds)

    async def wait(self, task_id: str) -> ExitStatus:
        """Wait for the exit of a container or exec; at once when it has ended. NotFound when unknown, or when its launch failed."""
        return exit_from_wire(await self.call("wait", {"task": task_id}, timeout=None))

    async def kill(self, task_id: str, signal: int, *, group: bool = False) -> None:
        """Send a signal, with ``group`` to the task's process group as well. One that has ended is success; NotFound when unknown."""
        await self.call("kill", {"task": task_id, "signal": int(signal), "group": group})

    async def reopen_log(self, task_id: str) -> None:
        """Continue the log in a new file at its path. Raises IllegalTransition when the container has ended."""
        await self.call("reopen_log", {"task": task_id})

    async def resize(self, task_id: str, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows. Raises Unsupported without a terminal."""
        await self.call("resize", {"task": task_id, "width": width, "height": height})

    async def attach(
        self,
        task_id: str,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        attached: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the container's output to, and its input from, these descriptors until its output ends or the client has gone.

        They must be pipes, sockets or terminals, are set non-blocking, and stay the caller's: close them once ``attached`` was called
        and never before. Cancel to detach. Raises LimitExceeded when the client was too slow (see bridge.monitor.attach).
        """
        names, fds = given(stdin, stdout, stderr)
        await self.call("attach", {"task": task_id, "fds": names}, fds, timeout=None, sent=attached)

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        """Make the fifos stdin, stdout and stderr in ``directory`` and log what comes, for a process that a shim runs.

        Held already is success. Raises Unsupported when the monitor is older than this server, HostError.
        """
        if "hold" not in self.abilities:
            raise Unsupported(_TOO_OLD)
        await self.call("hold", {"task": task_id, "directory": str(directory), **stdio(io)})

    async def ended(self, task_id: str, status: ExitStatus, *, drain: float) -> None:
        """Tell a held task's exit; returns once its output has ended and was logged, at most ``drain`` seconds later. Repeatable."""
        await self.call("ended", {"task": task_id, "exit": exit_to_wire(status), "drain": drain}, timeout=drain + QUICK_SECONDS)

    async def stdin_closed(self, task_id: str) -> None:
        """Wait until a held task's stdin was closed here, because its one client has left or by ``close_stdin``."""
        await self.call("stdin_closed", {"task": task_id}, timeout=None)

    async def spool(self, task_id: str, fifo: Path, path: Path) -> None:
        """Keep ``fifo`` read (made if it is missing) and the last of it in ``path`` and ``path``.1, until ``forget``. Repeatable."""
        if "hold" not in self.abilities:
            raise Unsupported(_TOO_OLD)
        await self.call("spool", {"task": task_id, "fifo": str(fifo), "path": str(path)})

    async def close_stdin(self, task_id: str) -> None:
        """Close the container's stdin once what was written is read; a terminal's can't be closed."""
        await self.call("close_stdin", {"task": task_id})

    async def tasks(self, only: str = "") -> Sequence[TaskInfo]:
        """Everything the monitor holds, tasks being launched included (pid 0); with ``only`` that task or nothing."""
        found = await self.call("tasks", {"task": only} if only else {})
        return [info_from_wire(wire) for wire in found if not only or wire["id"] == only]  # older monitors tell of all

    async def forget(self, task_id: str) -> None:
        """Release the record, stdio and log of an ended task; an absent one is success. Raises InUse while it runs."""
        await self.call("forget", {"task": task_id})

    async def renew(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Have the monitor go on as program ``argv``; this connection is lost then. Raises InUse while somebody would notice, HostError."""
        with contextlib.suppress(MonitorGone):
            await self.call("renew", {"argv": list(argv), "env": dict(env)})

    async def shutdown(self, *, force: bool = False) -> None:
        """End the monitor. Raises InUse while it holds tasks, unless ``force``: containers then go on without logs."""
        await self.call("shutdown", {"force": force})
