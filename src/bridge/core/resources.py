"""UpdateContainerResources and UpdatePodSandboxResources: limits of what exists, changed and recorded together.

One container's updates and its start follow each other; readers see the old record until the new one is committed. Whatever fails,
the limits that the record tells are set back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.aio import Rollback
from bridge.core import limits, pod_limits
from bridge.core.containers import ContainerService
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.live import LiveContainer
from bridge.core.model import Resources
from bridge.core.sandbox_death import held_inside
from bridge.core.sandboxes import SandboxService
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError, IllegalTransition, InUse, NotFound, Unavailable, Unsupported
from bridge.host import cgroup_stats
from bridge.host.facts import HostFacts
from bridge.ports.handlers import Handlers
from bridge.ports.runtime import Ability

_logger = log.get("core.resources")
_CHANGEABLE = (ContainerState.CREATED, ContainerState.RUNNING)
_UPDATE = "linux"
"""Where UpdateContainerResourcesRequest has the limits."""


@runtime_checkable
class HoldsPod(Protocol):
    """A sandbox that its containers live in, and whose limits can be changed."""

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Give the pod as a whole other limits: OCI linux.resources, only what changes.

        The pod's own cgroup is not the backend's to change. Raises Unsupported with why what runs keeps its limits, RuntimeFailed.
        """
        ...


class ResourceService:
    """See the module docstring."""

    def __init__(
        self, daemon: Surroundings, handlers: Handlers, containers: ContainerService, sandboxes: SandboxService, facts: HostFacts
    ) -> None:
        self._store, self._live, self._settings = daemon.store, daemon.live, daemon.settings
        self._handlers = handlers
        self._containers = containers
        self._sandboxes = sandboxes
        self._facts = facts
        self._pod_turns: dict[str, anyio.Lock] = {}

    async def update_container(self, ident: str, change: Resources | None) -> None:
        """Apply ``change`` to a created or running container; None or what is in force already changes nothing.

        Raises NotFound, IllegalTransition (it has ended), InvalidRequest, Unsupported, InUse (less memory than it uses), RuntimeFailed.
        """
        container = self._containers.find(ident)
        await self._live.reach(container.sandbox_id)
        if change is None:
            return
        with log.context(pod=container.sandbox_id[:13], container=container.id[:13]):
            self._changeable(container.id)
            entry = self._live.container(container.id)
            async with entry.changing:
                await self._update(self._changeable(container.id), entry, change)

    def _changeable(self, ident: str) -> Container:
        container = self._containers.find(ident)
        if container.state not in (*_CHANGEABLE, ContainerState.STARTING):
            raise IllegalTransition(f"container {ident} is {container.state}: only a created or running one can be given other resources")
        try:
            sandbox = self._store.sandbox(container.sandbox_id)
            backend = self._handlers.backend(sandbox.handler, sandbox.opening)
        except NotFound as exc:  # disabled for now; to a kubelet NotFound would mean the container
            raise Unavailable(exc.message) from exc
        if not backend.features.has(Ability.UPDATE):
            why = backend.features.lacks(Ability.UPDATE) or "it says nothing of it"
            raise Unsupported(f"{_UPDATE}: this handler can't change the resources of a container: {why}")
        return container

    async def _update(self, container: Container, entry: LiveContainer, change: Resources) -> None:
        current = container.resources or container.config.resources or Resources()
        limits.build(dataclasses.replace(change, memory_limit_in_bytes=0, memory_swap_limit_in_bytes=0), self._facts, _UPDATE)
        old = limits.build(current, self._facts, _UPDATE)
        new = limits.build(limits.merged(current, change), self._facts, _UPDATE)
        forth, back = limits.difference(old, new), limits.difference(new, old)
        if not forth:
            return
        if container.state is ContainerState.RUNNING:
            _refuse_hugepages(change, forth)
            await self._check_memory(entry, int(forth.get("memory", {}).get("limit", 0)))
        async with Rollback(f"update container {container.id[:12]}", step_timeout=self._settings.undo_timeout) as undo:
            undo.push("set its limits back", functools.partial(self._set_back, container.id, entry, back))
            try:
                await entry.handle.update(forth)
            except BridgeError as exc:
                if self._store.container(container.id).state not in _CHANGEABLE:
                    raise IllegalTransition(f"container {container.id} ended meanwhile") from exc
                raise
            await self._store.apply_container(container.id, "journal", resources=limits.in_force(new, current.oom_score_adj))
            undo.commit()
        _logger.info("resources changed: %s", forth)

    async def _set_back(self, ident: str, entry: LiveContainer, back: Mapping[str, Any]) -> None:
        container = self._store.containers.get(ident)
        if back and container is not None and container.state in _CHANGEABLE:
            await entry.handle.update(back)

    async def _check_memory(self, entry: LiveContainer, limit: int) -> None:
        """cgroup v1 answers EBUSY to a limit below the usage, v2 kills until it fits: neither is what an update asks for."""
        cgroup = entry.handle.cgroup
        if limit <= 0 or cgroup is None:
            return
        memory = (await run_sync(cgroup_stats.read, cgroup)).memory
        if memory is not None and memory.working_set is not None and memory.working_set > limit:
            raise InUse(f"{_UPDATE}.memory_limit_in_bytes: {limit} is less than the {memory.working_set} bytes that the container uses")

    async def update_sandbox(self, ident: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Record what the pod may use, and set it where the pod's cgroup is ours; a kubelet sets that of its own pods itself.

        Raises NotFound, IllegalTransition (the pod is not ready), InvalidRequest, Unsupported.
        """
        sandbox = self._sandboxes.find(ident)
        await self._live.reach(sandbox.id)
        turn = self._pod_turns.setdefault(sandbox.id, anyio.Lock())
        try:
            async with turn:
                await self._update_sandbox(self._sandboxes.find(sandbox.id), overhead, resources)
        finally:
            if not turn.statistics().tasks_waiting:
                self._pod_turns.pop(sandbox.id, None)

    async def _update_sandbox(self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None) -> None:
        if sandbox.state is not SandboxState.READY:
            raise IllegalTransition(f"sandbox {sandbox.id} is {sandbox.state}, not ready")
        changed = dataclasses.replace(
            sandbox,
            overhead=_merged(sandbox.overhead, overhead, self._facts, "overhead"),
            resources=_merged(sandbox.resources, resources, self._facts, "resources"),
        )
        async with Rollback(f"update pod {sandbox.id[:12]}", step_timeout=self._settings.undo_timeout) as undo:
            undo.push("set the pod's limits back", functools.partial(self._limit_again, changed, sandbox))
            await self._limit(sandbox, changed)
            await self._store.apply_sandbox(sandbox.id, "journal", overhead=changed.overhead, resources=changed.resources)
            undo.commit()

    async def _limit_again(self, new: Sandbox, old: Sandbox) -> None:
        with contextlib.suppress(Unsupported):  # then the new limits were refused too, and never set
            await self._limit(new, old)

    async def _limit(self, old: Sandbox, new: Sandbox) -> None:
        """Set the pod's limits on what its containers live in, and on the pod's cgroup."""
        before, after = (limits.build(pod_limits.resources(each), self._facts, "resources") for each in (old, new))
        change = limits.difference(before, after)
        if change and held_inside(self._handlers, new):
            handle = self._live.sandbox(new.id)
            try:
                if not isinstance(handle, HoldsPod):
                    raise Unsupported("this handler can't change the limits of a pod")
                await handle.update(change)
            except Unsupported as exc:
                raise Unsupported(f"resources: {exc.message}") from exc
        await pod_limits.apply(new)


def _refuse_hugepages(change: Resources, forth: Mapping[str, Any]) -> None:
    changed = {page["pageSize"] for page in forth.get("hugepageLimits", ())}
    for index, (size, _) in enumerate(change.hugepage_limits):
        if size in changed:
            raise Unsupported(f"{_UPDATE}.hugepage_limits[{index}]: runtimes can't change it while the container runs")


def _merged(current: Resources | None, change: Resources | None, facts: HostFacts, field: str) -> Resources | None:
    if change is None:
        return current
    result = limits.merged(current or Resources(), change)
    limits.build(result, facts, field)
    return result
