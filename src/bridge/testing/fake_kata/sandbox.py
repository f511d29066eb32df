"""The pod in its machine: from requests to what the agent is asked, and from exits to events."""

from __future__ import annotations

import json
import os
import posixpath
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from betterproto2 import Message

from bridge._proto.containerd import events
from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.v1.types import Status
from bridge._proto.runtimeoptions.v1 import Options
from bridge.aio import Supervisor
from bridge.errors import InvalidRequest, NotFound
from bridge.shimv2.encoding import decode, timestamp, type_name
from bridge.testing.fake_kata import places, specs
from bridge.testing.fake_kata.machine import Agent, Machine, Refused, boot
from bridge.testing.fake_kata.processes import Container, Process
from bridge.testing.fake_kata.specs import Bundle
from bridge.testing.fake_kata.stdio import Paths, Stdio

_ID: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Sandbox:
    """One pod. Its methods are called under ``lock``, but for those that watch."""

    def __init__(self, tasks: Supervisor, publish: Callable[[Message], None], lock: anyio.Lock) -> None:
        self._tasks = tasks
        self._publish = publish
        self._lock = lock
        self._containers: dict[str, Container] = {}
        self._machine: Machine | None = None
        self._id = ""
        self._pause: Container | None = None
        self._torn_down = False
        self.pid = 0
        """The hypervisor's; it stays what it was when the machine has gone."""

    @property
    def is_empty(self) -> bool:
        """Whether every container was deleted."""
        return not self._containers

    def container(self, ident: str) -> Container:
        """Raises NotFound."""
        if ident not in self._containers:
            raise NotFound(f"container does not exist {ident}")
        return self._containers[ident]

    def agent(self) -> Agent:
        """The agent of the machine. Raises Refused when there is none."""
        if self._machine is None:
            raise Refused("Bug, the sandbox hasn't been created for this container")
        if self._machine.agent.dead.is_set():
            raise Refused("Dead agent")
        return self._machine.agent

    async def create(self, request: pb.CreateTaskRequest) -> None:
        """Make a container; with the pod's own, boot the machine before."""
        if not _ID.fullmatch(request.id):
            raise Refused(f"invalid container/sandbox ID ({request.id})")
        try:
            bundle = specs.load(Path(request.bundle))
        except (OSError, ValueError) as exc:
            raise Refused(str(exc)) from exc
        _check_options(request)
        if bundle.is_sandbox:
            if self._machine is not None:
                raise Refused(f"cannot create another sandbox in sandbox: {self._id}")
            self._id = request.id
            self._machine = await boot(request.id, posixpath.join(bundle.cgroup_parent, f"kata_{request.id}"))
            self.pid = self._machine.pid
            self._tasks.spawn("watch the machine", self._watch_machine)
        elif self._machine is None:
            raise Refused("BUG: Cannot start the container, since the sandbox hasn't been created")
        try:
            await self._create(request, bundle)
        except BaseException:
            if bundle.is_sandbox:
                await self._machine.stop()
                self._machine = None
            raise

    async def _create(self, request: pb.CreateTaskRequest, bundle: Bundle) -> None:
        cgroup = posixpath.join((places.machine_dir(self._id) / "cgroup").read_text(), request.id)
        paths = Paths(request.stdin, request.stdout, request.stderr, request.terminal)
        container = Container(request.id, bundle, cgroup, Process(paths))
        pause = None if self._pause is None else self._pause.process.pid
        netns = (self._pause or container).bundle.netns
        spec = specs.in_guest(bundle, cgroup=cgroup, netns=netns, pause=pause)
        spec["process"]["terminal"] = request.terminal
        directory = self._guest_dir(container)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(spec))
        await self._run(container.process, self._console(), partial(self.agent().ask, "create", container=request.id))
        state = places.state_dir(self._id)
        state.mkdir(parents=True, exist_ok=True)
        (state / request.id).touch()
        self._containers[request.id] = container
        if bundle.is_sandbox:
            self._pause = container

    def _guest_dir(self, container: Container) -> Path:
        return places.machine_dir(self._id) / "containers" / container.id

    def _console(self) -> Path:
        """Short, for a unix socket's path."""
        return places.machine_dir(self._id) / f"tty{secrets.token_hex(4)}"

    async def _run(self, process: Process, console: Path, ask: Callable[..., Awaitable[int]]) -> None:
        process.stdio = Stdio.make(process.paths, console)
        try:
            listens = {} if process.stdio.console is None else {"console": str(console)}
            process.pid = await ask(fds=process.stdio.theirs, **listens)
            process.stdio.started()
        except BaseException:
            process.stdio.close()
            raise

    async def start(self, container: Container) -> None:
        """Start it, and then watch it."""
        process = container.process
        try:
            if not container.bundle.is_sandbox and places.fault("start") == "dies" and self._machine is not None:
                self._machine.kill()
            await self.agent().ask("start", container=container.id)
            await self._started(container, process, "")
        except BaseException:
            process.fail()
            raise

    async def start_exec(self, container: Container, process: Process) -> None:
        """The same for an exec."""
        name = next(name for name, known in container.execs.items() if known is process)
        directory = self._guest_dir(container)
        try:
            (directory / f"{name}.json").write_text(json.dumps({**(process.spec or {}), "terminal": process.paths.terminal}))
            await self._run(process, self._console(), partial(self.agent().ask, "exec", container=container.id, exec=name))
            await self._started(container, process, name)
        except BaseException as exc:
            process.fail()
            if isinstance(exc, Refused | OSError):
                raise Refused(f"cannot enter container {container.id}, with err {exc}") from exc
            raise

    async def _started(self, container: Container, process: Process, exec_id: str) -> None:
        assert process.stdio is not None
        process.status = Status.RUNNING
        if process.size is not None:
            process.stdio.resize(*process.size)
        try:
            process.stdio.copy()
        except OSError as exc:
            raise Refused(f"failed to creat io stream: {exc}") from exc
        self._tasks.spawn(f"wait for {container.id} {exec_id}", lambda: self._watch(container, process, exec_id))

    async def _watch(self, container: Container, process: Process, exec_id: str) -> None:
        assert self._machine is not None
        assert process.stdio is not None
        agent = self._machine.agent
        await process.stdio.ended.wait()
        ended = agent.exit_of(process.pid)
        await ended.done.wait()
        async with self._lock:
            if ended.oom:
                if container.bundle.is_crio:
                    (container.bundle.path / "oom").touch()
                self._publish(events.TaskOom(container_id=container.id))
            process.end(ended.code)
            self._publish(
                events.TaskExit(
                    container_id=container.id,
                    id=exec_id or container.id,
                    pid=self.pid,
                    exit_status=process.code,
                    exited_at=timestamp(process.ended_ns),
                )
            )
            process.exited.set()
        if container.bundle.is_sandbox and not exec_id:
            await self.tear_down()

    async def _watch_machine(self) -> None:
        """A machine that died is cleaned up after; whoever waits for its processes learns it from their exits."""
        assert self._machine is not None
        await self._machine.agent.dead.wait()
        async with self._lock:
            await self.tear_down()

    async def tear_down(self) -> None:
        """End the machine. Repeatable."""
        if self._machine is not None and not self._torn_down:
            self._torn_down = True
            await self._machine.stop()

    async def signal(self, container: Container, process: Process, number: int, *, everyone: bool) -> None:
        """Signal a process; with ``everyone`` all of the container."""
        if process.status not in (Status.CREATED, Status.RUNNING):
            raise Refused("Container not ready, running or paused, impossible to signal the container")
        await self.agent().ask("signal", container=container.id, pid=process.pid, signal=number, all=everyone)

    async def update(self, container: Container, resources: Mapping[str, Any]) -> None:
        """Set limits in the guest."""
        await self.agent().ask("update", container=container.id, resources=specs.resources(resources))

    async def delete(self, container: Container) -> None:
        """Remove it, running or not. The pod's own goes with the machine."""
        if not container.bundle.is_sandbox and self._machine is not None and not self._machine.agent.dead.is_set():
            await self._machine.agent.ask("delete", container=container.id)
        (places.state_dir(self._id) / container.id).unlink(missing_ok=True)
        del self._containers[container.id]
        if self.is_empty:
            places.state_dir(self._id).rmdir()


def _check_options(request: pb.CreateTaskRequest) -> None:
    """Only runtimeoptions are looked at, by their newer and their older name; other options are ignored, as by Kata."""
    if request.options is not None and type_name(request.options).endswith("runtimeoptions.v1.Options"):
        path = decode(Options, request.options.value).config_path
        if path and not os.access(path, os.R_OK):
            raise InvalidRequest(f"cannot find config file {path!r}: no such file or directory")
