"""Handles of what is alive now: one per sandbox, one per container, with the events that others wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridge.errors import Unavailable
from bridge.ports.runtime import ContainerHandle, SandboxHandle


@dataclass(slots=True)
class LiveContainer:
    """``exited`` is set once the store shows the exit; ``released`` once the runtime's own state is gone too, or was tried to be: ``freed``
    tells which.

    ``process`` is the OCI process object the container was made with; commands run in it start from that. ``changing`` is held by a start
    by an update of its resources and by a checkpoint, one after the other. ``checkpoint`` is the one under way, which a stop cancels.
    """

    handle: ContainerHandle
    process: Mapping[str, Any]
    exited: anyio.Event = field(default_factory=anyio.Event)
    released: anyio.Event = field(default_factory=anyio.Event)
    freed: bool = False
    watched: bool = False
    checkpoint: anyio.CancelScope | None = None
    changing: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))


@dataclass(slots=True)
class Live:
    """Registry of handles; filled by create and by recovery, emptied by remove.

    ``stopping`` are the pods that a StopPodSandbox or RemovePodSandbox has begun on: nothing new may begin in them.
    ``recovering`` are the pods of an earlier server that recovery has yet to look at, ``unreachable`` those whose backend it could
    not ask, with the reason: nothing is done to either. ``selinux_levels`` were chosen for pods whose records are not journaled yet.
    """

    sandboxes: dict[str, SandboxHandle] = field(default_factory=dict)
    containers: dict[str, LiveContainer] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    recovering: dict[str, anyio.Event] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    selinux_levels: set[str] = field(default_factory=set)

    async def reach(self, sandbox_id: str) -> None:
        """Return once recovery is done with the sandbox. Raises Unavailable while its backend can't be reached."""
        event = self.recovering.get(sandbox_id)
        if event is not None:
            await event.wait()
        why = self.unreachable.get(sandbox_id)
        if why is not None:
            raise Unavailable(f"sandbox {sandbox_id} can't be reached: {why}")

    def sandbox(self, ident: str) -> SandboxHandle:
        """Raises Unavailable when there is none."""
        handle = self.sandboxes.get(ident)
        if handle is None:
            raise Unavailable(f"sandbox {ident} has no live backend")
        return handle

    def container(self, ident: str) -> LiveContainer:
        """Raises Unavailable when there is none."""
        entry = self.containers.get(ident)
        if entry is None:
            raise Unavailable(f"container {ident} has no live backend")
        return entry
