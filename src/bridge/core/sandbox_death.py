"""What the death of a pod's sandbox means for its containers, where they lived inside it.

Their backend tells each one's exit. One whose exit it does not tell in time is counted as killed with the sandbox: a pod that is
not ready has no container that runs.
"""

from __future__ import annotations

import functools
import time

import anyio

from bridge import log
from bridge.aio import run_all
from bridge.core.containers import ContainerService
from bridge.core.entities import ContainerState, Sandbox
from bridge.core.live import Live
from bridge.core.store import Store
from bridge.errors import BridgeError
from bridge.ports.handlers import Handlers
from bridge.ports.runtime import ExitStatus, SandboxKind

_logger = log.get("core.sandboxes")
_KILLED = 137


def held_inside(handlers: Handlers, sandbox: Sandbox) -> bool:
    """Whether the containers of its handler live and die with their sandbox. One that is disabled by now can't tell."""
    try:
        return handlers.backend(sandbox.handler, sandbox.opening).sandbox_kind is not SandboxKind.NAMESPACES
    except BridgeError:
        return False


async def end_members(store: Store, live: Live, containers: ContainerService, ident: str, status: ExitStatus, patience: float) -> None:
    """Return once every container of dead sandbox ``ident`` is told as exited, after ``patience`` s with the sandbox's own end."""
    running = [one.id for one in store.members(ident) if one.state in (ContainerState.RUNNING, ContainerState.STARTING)]

    async def end(container: str) -> None:
        entry = live.containers.get(container)
        if entry is not None:
            with anyio.move_on_after(patience):
                await entry.exited.wait()
        left = store.containers.get(container)
        if left is not None and left.state is ContainerState.RUNNING:
            _logger.warning("container %s counts as killed with its pod", container[:13])
            reason = "" if status.oom_killed else "SandboxDied"
            await containers.record_exit(container, ExitStatus(_KILLED, 9, status.oom_killed, status.at_ns or time.time_ns(), reason))
            if entry is not None:
                entry.exited.set()

    await run_all(functools.partial(end, one) for one in running)
