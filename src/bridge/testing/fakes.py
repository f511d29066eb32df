"""In-memory stand-ins for the ports: a runtime backend here, its commands in ``fake_exec``, its registry in
``fake_handlers``, a network and an image store in ``fake_stores``.

They keep the contracts of ``bridge.ports`` (idempotent deletes, exits that are remembered, NotFound for what is gone) and
count what exists, so that a test can ask whether anything was left. ``fail_on`` names calls that raise once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from bridge.errors import HostError, IllegalTransition, NotFound, RuntimeFailed, Unavailable, Unsupported
from bridge.host.cgroup_stats import CgroupStats
from bridge.ports.runtime import (
    Ability,
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    Feature,
    Record,
    RuntimeFeatures,
    SandboxKind,
    SandboxSpec,
    Support,
)
from bridge.testing.fake_exec import FakeExec
from bridge.testing.fake_stores import Faults

Made = TypeVar("Made", "FakeSandbox", "FakeContainer")


async def _kept(made: Made, among: dict[str, Made]) -> Made:
    """A create call's last wait: when it is cancelled there, what was made goes again, as the port demands."""
    try:
        await anyio.lowlevel.checkpoint()
    except BaseException:
        among.pop(made.id, None)
        raise
    return made


class FakeContainer:
    """A container that runs until it is killed, or until ``exit`` is called."""

    def __init__(self, backend: FakeBackend, spec: ContainerSpec) -> None:
        self.id = spec.id
        self.spec = spec
        self.pid: int | None = None
        self.cgroup: str | None = None
        self.usage: CgroupStats | None = None
        self.updates: list[Mapping[str, Any]] = []
        self.signals: list[int] = []
        self.execs: list[ExecSpec] = []
        self.attached: list[dict[str, int]] = []
        self.heard: list[bytes] = []
        self.sizes: list[tuple[int, int]] = []
        self.ignored: frozenset[int] = frozenset()
        self.stands_still = False
        self.checkpoints: list[Path] = []
        self.restored = ""
        self.loaded: ContainerSpec | None = None
        self.status: ExitStatus | None = None
        self._backend = backend
        self._ended = anyio.Event()

    @property
    def record(self) -> Record:
        """What core stores."""
        return {"v": 1}

    async def start(self) -> int:
        """Take the next pid."""
        await self._backend.faults.passing("start", RuntimeFailed(handler="fake", verb="run", exit_code=1, log_tail=["no such file"]))
        if self.spec.restore is not None:
            found = self.spec.restore / "processes"
            self.restored = found.read_text() if found.exists() else "with its pod"
        self._backend.last_pid += 1
        self.pid = self._backend.last_pid
        return self.pid

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """End with 128 + signal unless the signal is ignored."""
        await self._backend.faults.passing("kill", HostError("kill failed"))
        self.signals.append(signal)
        if signal not in self.ignored:
            self.exit(128 + signal, signal)

    def exit(self, code: int, signal: int | None = None, *, oom: bool = False) -> None:
        """Have it end by itself."""
        if self.status is None:
            self.status = ExitStatus(code, signal, oom, time.time_ns())
            self._ended.set()

    async def wait(self) -> ExitStatus:
        """Its exit."""
        await self._backend.faults.passing("wait", HostError("its exit can't be asked for"))
        await self._ended.wait()
        assert self.status is not None
        return self.status

    async def exec(self, spec: ExecSpec) -> FakeExec:
        """Run a command that prints its argv to stdout."""
        self.execs.append(spec)
        await self._backend.faults.passing("exec", RuntimeFailed(handler="fake", verb="exec", exit_code=255))
        return FakeExec(0)

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """Give what ``say`` says, and what comes on stdin, to stdout, until the exit."""
        await self._backend.faults.passing("attach", IllegalTransition("the container's output has ended"))
        outputs = {name: os.dup(fd) for name, fd in (("stdout", stdout), ("stderr", stderr)) if fd is not None}
        inputs = [] if stdin is None else [os.dup(stdin)]
        attached()
        self.attached.append(outputs)
        try:
            async with anyio.create_task_group() as group:
                for fd in inputs:
                    group.start_soon(self._echo, fd)
                await self._ended.wait()
                group.cancel_scope.cancel()
        finally:
            self.attached.remove(outputs)
            for fd in (*inputs, *outputs.values()):
                os.close(fd)

    async def _echo(self, stdin: int) -> None:
        while True:
            await anyio.wait_readable(stdin)
            data = os.read(stdin, 4096)
            self.heard.append(data)
            if not data:
                return
            self.say(data)

    def say(self, data: bytes, name: str = "stdout") -> None:
        """Write output; it goes to whoever is attached."""
        for outputs in self.attached:
            if name in outputs:
                os.write(outputs[name], data)

    async def resize(self, width: int, height: int) -> None:
        """Remember the size."""
        if not self.spec.io.terminal:
            raise Unsupported("the container has no terminal")
        self.sizes.append((width, height))

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Remember what was asked for; a failure comes after it, as of a runtime that ended half-way."""
        self.updates.append(resources)
        await self._backend.faults.passing("update", RuntimeFailed(handler="fake", verb="update", exit_code=1, log_tail=["busy"]))

    async def pause(self) -> None:
        """Stand still."""
        await self._backend.faults.passing("pause", RuntimeFailed(handler="fake", verb="pause", exit_code=1, log_tail=["no freezer"]))
        self.stands_still = True

    async def resume(self) -> None:
        """Go on."""
        self.stands_still = False

    async def checkpoint(self, images: Path, work: Path, *, timeout: float) -> None:
        """Write down its pid; only of one that stands still."""
        assert self.stands_still
        self.checkpoints.append(images)
        await self._backend.faults.passing("checkpoint", RuntimeFailed(handler="fake", verb="checkpoint", exit_code=1, log_tail=["criu"]))
        (images / "processes").write_text(f"pid {self.pid}")
        (work / "dump.log").write_text("")

    async def stats(self) -> CgroupStats | None:
        """What a test put there."""
        return self.usage

    async def reopen_log(self) -> None:
        """There is no log."""

    async def release(self) -> None:
        """Nothing to free."""
        await self._backend.faults.passing("release", HostError("release failed"))

    async def delete(self) -> None:
        """Forget it."""
        await self._backend.faults.passing("delete", HostError("delete failed"))
        self.exit(137, 9)
        self._backend.containers.pop(self.id, None)


class FakeSandbox:
    """A sandbox; with a process if the pod shares its PID namespace."""

    def __init__(self, backend: FakeBackend, spec: SandboxSpec) -> None:
        self.id = spec.id
        self.spec = spec
        self.pid = 1000 if spec.shared_pid or backend.sandbox_kind is not SandboxKind.NAMESPACES else None
        self.cgroup: str | None = None
        self.ports: set[int] = set()
        self.updates: list[Mapping[str, Any]] = []
        self.connections: list[tuple[int, socket.socket]] = []
        self._backend = backend
        self._dead = anyio.Event()
        self._status: ExitStatus | None = None

    @property
    def record(self) -> Record:
        """What core stores."""
        return {"v": 1}

    async def create_container(self, spec: ContainerSpec) -> FakeContainer:
        """Add a container."""
        await self._backend.faults.passing("create_container", HostError("create failed"))
        container = FakeContainer(self._backend, spec)
        self._backend.containers[spec.id] = container
        return await _kept(container, self._backend.containers)

    async def load_container(self, spec: ContainerSpec, record: Record) -> FakeContainer:
        """The container from before. Raises NotFound."""
        found = self._backend.containers.get(spec.id)
        if found is None:
            raise NotFound(f"container {spec.id} not found")
        found.loaded = spec
        return found

    async def port_forward(self, port: int) -> socket.socket:
        """One end of a connection; the other is in ``connections``. Raises Unavailable for a port that is not in ``ports``."""
        await anyio.lowlevel.checkpoint()
        if port not in self.ports:
            raise Unavailable(f"can't connect to port {port} of the pod's localhost (127.0.0.1: connection refused)")
        mine, theirs = socket.socketpair()
        self.connections.append((port, theirs))
        mine.setblocking(False)
        theirs.setblocking(False)
        return mine

    async def wait(self) -> ExitStatus:
        """Until ``stop`` or ``die``."""
        await self._backend.faults.passing("wait", HostError("its exit can't be asked for"))
        await self._dead.wait()
        return self._status or ExitStatus(137, 9, at_ns=time.time_ns())

    def die(self, *, oom: bool = False, members: bool = True) -> None:
        """Have it end by itself, and its containers unless ``members`` is false, as of a backend that can't tell of them."""
        self._status = ExitStatus(137, 9, oom, time.time_ns())
        for container in tuple(self._backend.containers.values()):
            if members and container.spec.sandbox_id == self.id:
                container.exit(137, 9, oom=oom)
        self._dead.set()

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Remember the change."""
        await self._backend.faults.passing("update_sandbox", Unsupported("its size is fixed"))
        self.updates.append(resources)

    async def stop(self) -> None:
        """End its process."""
        self._dead.set()

    async def delete(self) -> None:
        """Forget it."""
        await self._backend.faults.passing("delete_sandbox", HostError("delete failed"))
        self._dead.set()
        self._backend.sandboxes.pop(self.id, None)


class FakeBackend:
    """A backend with every ability. ``kind`` CONTAINER or VM: each sandbox has a process, whose end is that of its containers."""

    def __init__(self, kind: SandboxKind = SandboxKind.NAMESPACES) -> None:
        self.sandbox_kind = kind
        self.faults = Faults()
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.containers: dict[str, FakeContainer] = {}
        self.last_pid = 5000
        self.features = RuntimeFeatures("fake 1.0", "/bin/fake", {ability: Feature(Support.SUPPORTED) for ability in Ability})

    async def create_sandbox(self, spec: SandboxSpec) -> FakeSandbox:
        """Add a sandbox."""
        await self.faults.passing("create_sandbox", RuntimeFailed(handler="fake", verb="run", exit_code=1))
        sandbox = self.sandboxes[spec.id] = FakeSandbox(self, spec)
        return await _kept(sandbox, self.sandboxes)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> FakeSandbox:
        """The sandbox from before, or an empty one."""
        return self.sandboxes.get(spec.id) or FakeSandbox(self, spec)

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """Forget what is unknown."""
        strangers = [ident for ident in (*self.containers, *self.sandboxes) if not known(ident)]
        for ident in strangers:
            self.containers.pop(ident, None)
            self.sandboxes.pop(ident, None)
        return strangers
