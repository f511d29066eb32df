"""Handles of what is alive now: one per sandbox, one per container, with the events that others wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridge.errors import IllegalTransition
from bridge.ports.runtime import ContainerHandle, SandboxHandle


@dataclass(slots=True)
class LiveContainer:
    """``exited`` is set once the store shows the exit; ``released`` once the runtime's own state is gone too.

    ``process`` is the OCI process object the container was made with; commands run in it start from that.
    """

    handle: ContainerHandle
    process: Mapping[str, Any]
    exited: anyio.Event = field(default_factory=anyio.Event)
    released: anyio.Event = field(default_factory=anyio.Event)
    watched: bool = False


@dataclass(slots=True)
class Live:
    """Registry of handles; filled by create and by recovery, emptied by remove.

    ``stopping`` are the pods that a StopPodSandbox or RemovePodSandbox has begun on: nothing new may begin in them.
    """

    sandboxes: dict[str, SandboxHandle] = field(default_factory=dict)
    containers: dict[str, LiveContainer] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)

    def sandbox(self, ident: str) -> SandboxHandle:
        """Raises IllegalTransition while the sandbox is not adopted (yet)."""
        handle = self.sandboxes.get(ident)
        if handle is None:
            raise IllegalTransition(f"sandbox {ident} has no live backend; it was stopped or is still being recovered")
        return handle

    def container(self, ident: str) -> LiveContainer:
        """Raises IllegalTransition while the container is not adopted (yet)."""
        entry = self.containers.get(ident)
        if entry is None:
            raise IllegalTransition(f"container {ident} has no live backend; it was lost or is still being recovered")
        return entry
