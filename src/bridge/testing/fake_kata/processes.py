"""Records of what runs in the machine: containers, their first processes, and execs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridge._proto.containerd.v1.types import Status
from bridge.errors import NotFound
from bridge.testing.fake_kata.machine import DEAD_CODE
from bridge.testing.fake_kata.specs import Bundle
from bridge.testing.fake_kata.stdio import Paths, Stdio


@dataclass(slots=True)
class Process:
    """One process. ``pid`` is the guest's own, and never told; ``spec`` is the OCI object of an exec."""

    paths: Paths
    spec: Mapping[str, Any] | None = None
    stdio: Stdio | None = None
    pid: int = 0
    status: Status = Status.CREATED
    code: int = 0
    ended_ns: int = 0
    exited: anyio.Event = field(default_factory=anyio.Event)
    size: tuple[int, int] | None = None

    def end(self, code: int) -> None:
        """It has ended."""
        self.status, self.code, self.ended_ns = Status.STOPPED, code, time.time_ns()
        if self.stdio is not None:
            self.stdio.close()

    def fail(self) -> None:
        """Its start failed: who waits for it gets to know."""
        self.code = DEAD_CODE
        self.exited.set()

    def resize(self, width: int, height: int) -> None:
        """Set its terminal's size, now or when it has one."""
        self.size = (width, height)
        if self.stdio is not None:
            self.stdio.resize(width, height)

    async def close_stdin(self) -> None:
        """Once its copy has ended."""
        if self.stdio is not None:
            await self.stdio.fed.wait()
            self.stdio.close_stdin()


@dataclass(slots=True)
class Container:
    """A container. ``cgroup`` is the guest's for it."""

    id: str
    bundle: Bundle
    cgroup: str
    process: Process
    execs: dict[str, Process] = field(default_factory=dict)

    def exec_of(self, exec_id: str) -> Process:
        """Raises NotFound."""
        if exec_id not in self.execs:
            raise NotFound(f"exec does not exist {exec_id}")
        return self.execs[exec_id]
