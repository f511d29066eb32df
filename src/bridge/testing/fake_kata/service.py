"""The task service of the fake: what Kata's shim answers, in its order and under its one lock (Kata's pkg/containerd-shim-v2).

Every call but Wait, Pids and Shutdown holds the lock, also while the machine boots. Work under way belongs to the shim: a caller
that leaves or times out does not end it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from betterproto2 import Message

from bridge._proto.containerd import events
from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import ProcessInfo, Status
from bridge.aio import Supervisor
from bridge.errors import AlreadyExists, InvalidRequest, Unsupported
from bridge.shimv2.encoding import PROCESS, RESOURCES, timestamp, type_name
from bridge.shimv2.server import Services, Unary
from bridge.testing.fake_kata import stats
from bridge.testing.fake_kata.machine import Refused
from bridge.testing.fake_kata.processes import Container, Process
from bridge.testing.fake_kata.sandbox import Sandbox
from bridge.testing.fake_kata.stdio import Paths

SERVICE: Final = "containerd.task.v2.Task"


class TaskService:
    """The methods. ``publish`` takes events, in order; ``end`` ends the shim."""

    def __init__(self, shim_pid: int, tasks: Supervisor, publish: Callable[[Message], None], end: Callable[[], None]) -> None:
        self._pid = shim_pid
        self._tasks = tasks
        self._publish = publish
        self._end = end
        self._lock = anyio.Lock()
        self._sandbox = Sandbox(tasks, publish, self._lock)

    def services(self) -> Services:
        """What to serve."""
        locked: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            "Create": (pb.CreateTaskRequest, self.create),
            "Start": (pb.StartRequest, self.start),
            "Delete": (pb.DeleteRequest, self.delete),
            "Exec": (pb.ExecProcessRequest, self.exec),
            "State": (pb.StateRequest, self.state),
            "Kill": (pb.KillRequest, self.kill),
            "ResizePty": (pb.ResizePtyRequest, self.resize),
            "CloseIO": (pb.CloseIoRequest, self.close_io),
            "Update": (pb.UpdateTaskRequest, self.update),
            "Stats": (pb.StatsRequest, self.stats),
            "Connect": (pb.ConnectRequest, self.connect),
            "Checkpoint": (pb.CheckpointTaskRequest, self.checkpoint),
        }
        methods = {name: Unary(request_type, partial(self._owned, run)) for name, (request_type, run) in locked.items()}
        methods["Wait"] = Unary(pb.WaitRequest, self.wait)
        methods["Pids"] = Unary(pb.PidsRequest, self.pids)
        methods["Shutdown"] = Unary(pb.ShutdownRequest, self.shutdown)
        return {SERVICE: methods}

    async def _owned(self, run: Callable[[Any], Awaitable[Message]], request: Any) -> Message:
        """Run under the lock, in a task of the shim's; the caller only waits for it."""
        done = anyio.Event()
        answer: list[Message | Exception] = []

        async def work() -> None:
            try:
                async with self._lock:
                    answer.append(await run(request))
            except Exception as exc:  # noqa: BLE001 - told to the caller
                answer.append(exc)
            finally:
                done.set()

        self._tasks.spawn(f"answer {type(request).__name__}", work)
        await done.wait()
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def _process(self, container_id: str, exec_id: str) -> Process:
        container = self._sandbox.container(container_id)
        return container.exec_of(exec_id) if exec_id else container.process

    async def create(self, request: pb.CreateTaskRequest) -> Message:
        """Boot the machine, or make a member in it."""
        await self._sandbox.create(request)
        io = events.TaskIo(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)
        self._publish(events.TaskCreate(container_id=request.id, bundle=request.bundle, io=io, pid=self._sandbox.pid))
        return pb.CreateTaskResponse(pid=self._sandbox.pid)

    async def start(self, request: pb.StartRequest) -> Message:
        """Start a container or an exec."""
        container = self._sandbox.container(request.id)
        if not request.exec_id:
            await self._sandbox.start(container)
            self._publish(events.TaskStart(container_id=request.id, pid=self._sandbox.pid))
        else:
            await self._sandbox.start_exec(container, container.exec_of(request.exec_id))
            self._publish(events.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=self._sandbox.pid))
        return pb.StartResponse(pid=self._sandbox.pid)

    async def delete(self, request: pb.DeleteRequest) -> Message:
        """Remove a container, ended or not, or the record of an exec."""
        container = self._sandbox.container(request.id)
        process = self._process(request.id, request.exec_id)
        if request.exec_id:
            del container.execs[request.exec_id]
        else:
            await self._sandbox.delete(container)
            self._publish(
                events.TaskDelete(
                    container_id=request.id, pid=self._sandbox.pid, exit_status=process.code, exited_at=timestamp(process.ended_ns)
                )
            )
        return pb.DeleteResponse(pid=self._sandbox.pid, exit_status=process.code, exited_at=timestamp(process.ended_ns))

    async def exec(self, request: pb.ExecProcessRequest) -> Message:
        """Add an exec."""
        container = self._sandbox.container(request.id)
        if request.exec_id in container.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        if request.spec is None or type_name(request.spec) != PROCESS:
            raise InvalidRequest("Get an invalid spec type")
        paths = Paths(request.stdin, request.stdout, request.stderr, request.terminal)
        container.execs[request.exec_id] = Process(paths, spec=json.loads(request.spec.value))
        self._publish(events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    async def state(self, request: pb.StateRequest) -> Message:
        """The pid is the hypervisor's, the fifos those that were given."""
        container, process = self._sandbox.container(request.id), self._process(request.id, request.exec_id)
        return pb.StateResponse(
            id=request.exec_id or request.id,
            bundle=str(container.bundle.path),
            pid=self._sandbox.pid,
            status=process.status,
            stdin=process.paths.stdin,
            stdout=process.paths.stdout,
            stderr=process.paths.stderr,
            terminal=process.paths.terminal,
            exit_status=process.code,
            exited_at=timestamp(process.ended_ns),
        )

    async def kill(self, request: pb.KillRequest) -> Message:
        """Of a container always all of it. To signal what has ended succeeds for SIGTERM and SIGKILL alone."""
        container, process = self._sandbox.container(request.id), self._process(request.id, request.exec_id)
        if request.exec_id and not process.pid:
            raise Refused("The exec process does not exist")
        if process.status != Status.STOPPED or request.signal not in (9, 15):
            await self._sandbox.signal(container, process, request.signal, everyone=not request.exec_id)
        return Empty()

    async def resize(self, request: pb.ResizePtyRequest) -> Message:
        """Set a terminal's size."""
        self._sandbox.agent()
        self._process(request.id, request.exec_id).resize(request.width, request.height)
        return Empty()

    async def close_io(self, request: pb.CloseIoRequest) -> Message:
        """Waits, lock in hand, until the last writer of the fifo has closed it."""
        await self._process(request.id, request.exec_id).close_stdin()
        return Empty()

    async def update(self, request: pb.UpdateTaskRequest) -> Message:
        """Set limits in the guest."""
        if request.resources is None or type_name(request.resources) != RESOURCES:
            raise InvalidRequest(f"Invalid resources type for {request.id}")
        await self._sandbox.update(self._sandbox.container(request.id), json.loads(request.resources.value))
        return Empty()

    async def stats(self, request: pb.StatsRequest) -> Message:
        """What a container uses in the guest."""
        container: Container = self._sandbox.container(request.id)
        self._sandbox.agent()
        netns = Path(container.bundle.netns or "/proc/self/ns/net")
        return pb.StatsResponse(stats=await stats.metrics(container.cgroup, netns))

    async def connect(self, request: pb.ConnectRequest) -> Message:
        """Pids of the shim and of the hypervisor."""
        return pb.ConnectResponse(shim_pid=self._pid, task_pid=self._sandbox.pid)

    async def checkpoint(self, request: pb.CheckpointTaskRequest) -> Message:
        """Kata has none."""
        raise Unsupported("service Checkpoint")

    async def wait(self, request: pb.WaitRequest) -> Message:
        """Return once the process has ended and all its output was taken."""
        async with self._lock:
            process = self._process(request.id, request.exec_id)
        await process.exited.wait()
        return pb.WaitResponse(exit_status=process.code, exited_at=timestamp(process.ended_ns))

    async def pids(self, request: pb.PidsRequest) -> Message:
        """The hypervisor's alone."""
        return pb.PidsResponse(processes=[ProcessInfo(pid=self._sandbox.pid)])

    async def shutdown(self, request: pb.ShutdownRequest) -> Message:
        """Ignored while there are containers; else the machine and the shim end, without an answer."""
        async with self._lock:
            if self._sandbox.is_empty:
                await self._sandbox.tear_down()
                self._end()
        return Empty()
