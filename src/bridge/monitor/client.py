"""The server's side of the monitor: MonitorClient, one connection with any number of calls at once."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from bridge import log
from bridge.errors import MonitorGone, Unavailable, Unsupported
from bridge.monitor.asking import given, stdio, verb
from bridge.monitor.channel import Channel
from bridge.monitor.dialling import dial
from bridge.monitor.protocol import Frame, LaunchFailed, TaskInfo, error_from_wire, exit_from_wire, exit_to_wire, info_from_wire
from bridge.ports.runtime import ContainerIO, ExitStatus

__all__ = ["LaunchFailed", "MonitorClient", "TaskInfo"]

_QUICK_SECONDS = 10.0
"""Deadline of calls that wait for nothing but the monitor."""
_LAUNCH_MARGIN = 60.0
"""Beyond a launch's own timeout, which the monitor keeps: its clean-up of a failed one."""

_TOO_OLD = "the running monitor is of an older release and can't hold such containers: drain the node and end it"

_logger = log.get("monitor.client")


class _Call:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer: Mapping[str, Any] | None = None


class MonitorClient:
    """A connection to the monitor. Calls raise the error class that the monitor names, or MonitorGone when it is lost.

    Cancelling a call gives its request up: a launch or exec under way is then killed, an attach ended, a wait dropped. A launch may
    have succeeded just before its cancel arrived: whoever cancels one kills and forgets the task, or finds it in ``tasks``.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_exit: Callable[[str, ExitStatus], None] | None = None,
        on_event: Callable[[Frame], None] | None = None,
    ) -> None:
        """Use ``connect``; ``on_exit`` is called from the loop for every task that ends while connected.

        ``on_event`` gets every event and owns its descriptors.
        """
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._on_exit = on_exit
        self._on_event = on_event
        self.closed = anyio.Event()
        self.pid = 0
        """The monitor's pid, start time (Unix, ns) and the file descriptor limits (soft, hard) that it was started with."""
        self.start_ns = 0
        self.nofile = (0, 0)
        self.abilities: frozenset[str] = frozenset()
        """What it can do beyond the first monitors (bridge.monitor.protocol.ABILITIES): it may be older than this server."""
        self._channel = Channel(sock, self._on_frame, self._on_lost)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        socket: Path,
        *,
        timeout: float = 5.0,
        on_exit: Callable[[str, ExitStatus], None] | None = None,
        on_event: Callable[[Frame], None] | None = None,
    ) -> AsyncIterator[MonitorClient]:
        """Connect within ``timeout`` seconds, waiting for the monitor to appear. Raises MonitorGone, Unavailable (no answer)."""
        client = cls(await dial(socket, timeout), on_exit, on_event)
        try:
            await client.hello(max(timeout, _QUICK_SECONDS))
            yield client
        finally:
            client._channel.close()

    async def hello(self, timeout: float) -> None:
        """Ask who it is, and whether it answers at all. Raises Unavailable after ``timeout`` seconds."""
        told = await self._call("hello", {}, timeout=timeout)
        self.pid, self.start_ns, self.nofile = int(told["pid"]), int(told["start_ns"]), tuple(told["nofile"])
        self.abilities = frozenset(told.get("abilities", ()))

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
        return int((await self._call("launch", parameters, timeout=timeout + _LAUNCH_MARGIN))["pid"])

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
        answer = await self._call("exec", parameters | {"fds": names}, fds, timeout=timeout + _LAUNCH_MARGIN)
        return int(answer["pid"])

    async def share(self) -> None:
        """From now on ``on_event`` is given duplicates of every container's stdio (bridge.monitor.sharing)."""
        await self._call("share", {})

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
        await self._call("adopt", parameters, fds)

    async def wait(self, task_id: str) -> ExitStatus:
        """Wait for the exit of a container or exec; at once when it has ended. NotFound when unknown, or when its launch failed."""
        return exit_from_wire(await self._call("wait", {"task": task_id}, timeout=None))

    async def kill(self, task_id: str, signal: int, *, group: bool = False) -> None:
        """Send a signal, with ``group`` to the task's process group as well. One that has ended is success; NotFound when unknown."""
        await self._call("kill", {"task": task_id, "signal": int(signal), "group": group})

    async def reopen_log(self, task_id: str) -> None:
        """Continue the log in a new file at its path. Raises IllegalTransition when the container has ended."""
        await self._call("reopen_log", {"task": task_id})

    async def resize(self, task_id: str, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows. Raises Unsupported without a terminal."""
        await self._call("resize", {"task": task_id, "width": width, "height": height})

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
        await self._call("attach", {"task": task_id, "fds": names}, fds, timeout=None, sent=attached)

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        """Make the fifos stdin, stdout and stderr in ``directory`` and log what comes, for a process that a shim runs.

        Held already is success. Raises Unsupported when the monitor is older than this server, HostError.
        """
        if "hold" not in self.abilities:
            raise Unsupported(_TOO_OLD)
        await self._call("hold", {"task": task_id, "directory": str(directory), **stdio(io)})

    async def ended(self, task_id: str, status: ExitStatus, *, drain: float) -> None:
        """Tell a held task's exit; returns once its output has ended and was logged, at most ``drain`` seconds later. Repeatable."""
        await self._call("ended", {"task": task_id, "exit": exit_to_wire(status), "drain": drain}, timeout=drain + _QUICK_SECONDS)

    async def stdin_closed(self, task_id: str) -> None:
        """Wait until a held task's stdin was closed here, because its one client has left or by ``close_stdin``."""
        await self._call("stdin_closed", {"task": task_id}, timeout=None)

    async def spool(self, task_id: str, fifo: Path, path: Path) -> None:
        """Keep ``fifo`` read (made if it is missing) and the last of it in ``path`` and ``path``.1, until ``forget``. Repeatable."""
        if "hold" not in self.abilities:
            raise Unsupported(_TOO_OLD)
        await self._call("spool", {"task": task_id, "fifo": str(fifo), "path": str(path)})

    async def close_stdin(self, task_id: str) -> None:
        """Close the container's stdin once what was written is read; a terminal's can't be closed."""
        await self._call("close_stdin", {"task": task_id})

    async def tasks(self) -> Sequence[TaskInfo]:
        """Everything the monitor holds, tasks being launched included (pid 0)."""
        return [info_from_wire(wire) for wire in await self._call("tasks", {})]

    async def forget(self, task_id: str) -> None:
        """Release the record, stdio and log of an ended task; an absent one is success. Raises InUse while it runs."""
        await self._call("forget", {"task": task_id})

    async def shutdown(self, *, force: bool = False) -> None:
        """End the monitor. Raises InUse while it holds tasks, unless ``force``: containers then go on without logs."""
        await self._call("shutdown", {"force": force})

    async def _call(
        self,
        op: str,
        parameters: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        timeout: float | None = _QUICK_SECONDS,
        sent: Callable[[], None] = lambda: None,
    ) -> Any:
        number, call = next(self._ids), _Call()
        self._calls[number] = call
        try:
            if self.closed.is_set():
                raise MonitorGone("the connection to the monitor is lost")
            self._channel.send({**parameters, "id": number, "op": op}, fds)
            sent()
            with anyio.move_on_after(timeout):
                await call.done.wait()
            if not call.done.is_set():
                raise Unavailable(f"the monitor did not answer {op} within {timeout:g} s")
        finally:
            del self._calls[number]
            if not call.done.is_set():
                self._channel.send({"op": "cancel", "id": number})
        if call.answer is None:
            raise MonitorGone(f"the connection to the monitor was lost during {op}")
        if "error" in call.answer:
            raise error_from_wire(call.answer["error"])
        return call.answer.get("ok")

    def _on_frame(self, frame: Frame) -> None:
        message = frame.message
        if "event" in message:
            if message["event"] == "exit" and self._on_exit is not None:
                self._on_exit(str(message["task"]), exit_from_wire(message["exit"]))
            if self._on_event is not None:
                self._on_event(frame)
            return
        call = self._calls.get(message.get("id", 0))
        if call is not None:  # else the call was cancelled meanwhile
            call.answer = message
            call.done.set()

    def _on_lost(self, why: BaseException | None) -> None:
        if why is not None:
            _logger.warning("connection to the monitor lost: %s", why)
        self.closed.set()
        for call in self._calls.values():
            call.done.set()
