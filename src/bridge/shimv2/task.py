"""The task service of a shim for one task, typed: version 2 and 3, which differ in the service's name alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any as Anything
from typing import Protocol, TypeVar

from betterproto2 import Message

from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.types import Any, Empty
from bridge.ports.runtime import ExitStatus
from bridge.shimv2.encoding import PROCESS, RESOURCES, nanoseconds, packed_json
from bridge.shimv2.verbs import exit_status

M = TypeVar("M", bound=Message)
QUICK_SECONDS = 10.0
"""Deadline of calls that wait for nothing but the shim."""


class Caller(Protocol):
    """Who reaches the shim: calls ``method`` of its task service. Raises ShimGone, TimedOut, RuntimeFailed and what statuses maps."""

    async def call(self, method: str, request: Message, response_type: type[M], *, timeout: float | None) -> M: ...


class Status(IntEnum):
    """State of a task (containerd.v1.types.Status)."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class Stdio:
    """Paths of fifos, or of other files that can be opened and written; "" where there is none. A terminal has no ``stderr``."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    def piped(self) -> Stdio:
        """The same with the null device where there is nothing: a shim opens that itself and gives its runtime a pipe."""
        if self.terminal:
            return self
        null = os.devnull
        return replace(self, stdin=self.stdin or null, stdout=self.stdout or null, stderr=self.stderr or null)


@dataclass(frozen=True, slots=True)
class State:
    """What a shim knows of a task; ``exit`` is meaningful once it is STOPPED."""

    status: Status
    pid: int
    stdio: Stdio
    exit: ExitStatus


class ShimTask:
    """A task of a shim, and its execs by ``exec_id`` ("" is the task's own process). Time-outs are in seconds."""

    def __init__(self, shim: Caller, ident: str) -> None:
        self._shim = shim
        self.id = ident

    async def create(self, bundle: Path, stdio: Stdio, *, options: Any | None = None, timeout: float) -> int:
        """Make the container of ``bundle``, whose root filesystem is mounted already; returns its pid, as the host numbers it."""
        request = pb.CreateTaskRequest(
            id=self.id,
            bundle=str(bundle),
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            options=options,
        )
        return (await self._shim.call("Create", request, pb.CreateTaskResponse, timeout=timeout)).pid

    async def start(self, exec_id: str = "", *, timeout: float) -> int:
        """Start what was created or added; returns its pid."""
        return (await self._shim.call("Start", pb.StartRequest(id=self.id, exec_id=exec_id), pb.StartResponse, timeout=timeout)).pid

    async def wait(self, exec_id: str = "") -> ExitStatus:
        """Wait for its exit, however long; at once when it has ended."""
        answer = await self._shim.call("Wait", pb.WaitRequest(id=self.id, exec_id=exec_id), pb.WaitResponse, timeout=None)
        return exit_status(answer.exit_status, nanoseconds(answer.exited_at))

    async def kill(self, signal: int, exec_id: str = "", *, everyone: bool = False, timeout: float = QUICK_SECONDS) -> None:
        """Signal its process, or with ``everyone`` all of the container."""
        request = pb.KillRequest(id=self.id, exec_id=exec_id, signal=int(signal), all=everyone)
        await self._shim.call("Kill", request, Empty, timeout=timeout)

    async def delete(self, exec_id: str = "", *, timeout: float) -> ExitStatus:
        """Free what has ended; tells its exit once more. Raises NotFound when it is unknown."""
        answer = await self._shim.call("Delete", pb.DeleteRequest(id=self.id, exec_id=exec_id), pb.DeleteResponse, timeout=timeout)
        return exit_status(answer.exit_status, nanoseconds(answer.exited_at))

    async def add(self, exec_id: str, process: Mapping[str, Anything], stdio: Stdio, *, timeout: float) -> None:
        """Add an exec with an OCI process object; ``start`` runs it."""
        request = pb.ExecProcessRequest(
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=packed_json(PROCESS, process),
        )
        await self._shim.call("Exec", request, Empty, timeout=timeout)

    async def state(self, exec_id: str = "", *, timeout: float = QUICK_SECONDS) -> State:
        """What the shim knows. Raises NotFound."""
        answer = await self._shim.call("State", pb.StateRequest(id=self.id, exec_id=exec_id), pb.StateResponse, timeout=timeout)
        stdio = Stdio(answer.stdin, answer.stdout, answer.stderr, answer.terminal)
        return State(Status(int(answer.status)), answer.pid, stdio, exit_status(answer.exit_status, nanoseconds(answer.exited_at)))

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        """Set a terminal's size in columns and rows."""
        request = pb.ResizePtyRequest(id=self.id, exec_id=exec_id, width=width, height=height)
        await self._shim.call("ResizePty", request, Empty, timeout=QUICK_SECONDS)

    async def close_stdin(self, exec_id: str = "") -> None:
        """Let its input end: the shim keeps the fifo open, so that who writes to it may change."""
        await self._shim.call("CloseIO", pb.CloseIoRequest(id=self.id, exec_id=exec_id, stdin=True), Empty, timeout=QUICK_SECONDS)

    async def update(self, resources: Mapping[str, Anything], *, timeout: float) -> None:
        """Set the limits that an OCI linux.resources object names."""
        await self._shim.call(
            "Update", pb.UpdateTaskRequest(id=self.id, resources=packed_json(RESOURCES, resources)), Empty, timeout=timeout
        )

    async def stats(self, *, timeout: float = QUICK_SECONDS) -> Any | None:
        """What it uses, as a Metrics message of cgroups v1 or v2."""
        return (await self._shim.call("Stats", pb.StatsRequest(id=self.id), pb.StatsResponse, timeout=timeout)).stats

    async def pids(self) -> list[int]:
        """Pids of its processes as the shim numbers them: the host's, but for virtual machines."""
        answer = await self._shim.call("Pids", pb.PidsRequest(id=self.id), pb.PidsResponse, timeout=QUICK_SECONDS)
        return [process.pid for process in answer.processes]

    async def shim_pid(self) -> int:
        """The shim's own pid."""
        return (await self._shim.call("Connect", pb.ConnectRequest(id=self.id), pb.ConnectResponse, timeout=QUICK_SECONDS)).shim_pid

    async def shut_down(self) -> None:
        """End the shim, unless it still holds containers. The connection may be lost before the answer."""
        await self._shim.call("Shutdown", pb.ShutdownRequest(id=self.id), Empty, timeout=QUICK_SECONDS)
