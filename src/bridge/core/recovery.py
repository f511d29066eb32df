"""After a restart of the server: take over what runs, finish or undo what was half-way, and never fail as a whole.

Assumptions, in order:
1. The store is loaded and List is answered from it already; nothing here is waited for by a reader.
2. A record of an earlier boot owns no process, mount or namespace any more: /run was emptied and the kernel is new. Its CNI
   attachment may still own an address.
3. A record in phase creating belongs to nobody: the client got no id. It is undone. So is a pod that was being restored.
4. For everything else the backend's handle says what is true now. A container that is gone without a known exit is reported
   as exited, code 255; never as running.
5. A backend that can't be reached now says nothing of what it runs: the records stay, and it is tried again. So it is, a few times,
   after a failure of the host or the runtime.
6. What no record owns (a record was unreadable, or the whole database) is removed: see orphans.
7. A container that can't be taken over though its pod can is lost alone: it counts as exited, and what may still run of it is ended,
   so that the next attempt does not run beside it. The others of its pod go on.
Each sandbox is handled on its own and in parallel with a bound; one that can't be handled is logged and left as stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from bridge import log
from bridge.aio import describe, run_all
from bridge.core import spec, stamps
from bridge.core.checkpoints import let_go_on
from bridge.core.container_io import container_io
from bridge.core.containers import ContainerService
from bridge.core.detach import Detacher, from_record
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.orphans import Orphans
from bridge.core.sandbox_run import sandbox_spec
from bridge.core.sandboxes import SandboxService
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError, HostError, NotFound, RuntimeFailed, Unavailable
from bridge.host import files
from bridge.ports.handlers import Handlers
from bridge.ports.network import Network
from bridge.ports.runtime import ContainerHandle, ContainerSpec, ExitStatus, SandboxHandle

_logger = log.get("core.recovery")
LOST_CODE = 255
"""Exit code of a container whose real one nobody could learn."""
_PARALLEL = 16
_PASSING = (HostError, RuntimeFailed)
"""What may be over in a moment: no descriptor or memory left, a disk that fails, a runtime that is being replaced."""
_TRIES = 4
_HALF = (SandboxState.CREATING, SandboxState.REMOVING)


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery:
    """Runs once, after the store was loaded and the backends were opened."""

    daemon: Surroundings
    handlers: Handlers
    orphans: Orphans
    network: Network
    detacher: Detacher
    sandboxes: SandboxService
    containers: ContainerService
    facts: spec.HostFacts
    spec_settings: spec.SpecSettings
    pause: float = 5.0

    async def run(self) -> None:
        """Bring every record into agreement with the host."""
        limiter = anyio.CapacityLimiter(_PARALLEL)
        # Not all there are by now: the socket is served already.
        records = [self.daemon.store.sandboxes[ident] for ident in tuple(self.daemon.live.recovering)]
        await run_all(functools.partial(self._one, sandbox, limiter) for sandbox in records)
        for sandbox_id in tuple(self.daemon.store.detachments):
            self.detacher.schedule(sandbox_id)
        keep = [from_record(s.attachment) for s in self.daemon.store.sandboxes.values() if s.attachment is not None]
        keep += [from_record(record) for record in self.daemon.store.detachments.values()]
        try:
            await self.network.collect(keep)
        except BridgeError as exc:
            _logger.warning("CNI GC failed: %s", exc)
        await self.orphans.remove()
        if records:
            _logger.info("recovered %d pods, %d containers", len(self.daemon.store.sandboxes), len(self.daemon.store.containers))

    async def _one(self, sandbox: Sandbox, limiter: anyio.CapacityLimiter, tries: int = _TRIES) -> None:
        live = self.daemon.live
        async with limiter:
            with log.context(pod=sandbox.id[:13]):
                try:
                    await self._sandbox(sandbox, last=tries <= 1)
                    live.unreachable.pop(sandbox.id, None)
                except Exception as exc:  # noqa: BLE001 - one pod's fault must not be the others'
                    await self._failed(sandbox, exc, limiter, tries)
                finally:
                    live.recovering.pop(sandbox.id).set()

    async def _failed(self, sandbox: Sandbox, exc: Exception, limiter: anyio.CapacityLimiter, tries: int) -> None:
        if not isinstance(exc, BridgeError):
            _logger.error("recovering the pod raised what no code should", exc_info=exc)
        why = exc.message if isinstance(exc, BridgeError) else describe(exc)
        current = self.daemon.store.sandboxes.get(sandbox.id)
        if current is not None and current.state in _HALF:  # its name is free from now on, also while its backend is away
            await self.daemon.leftovers.keep(sandbox.id, why)
        elif isinstance(exc, Unavailable) or (isinstance(exc, _PASSING) and tries > 1):
            _logger.error("pod can't be reached, its records stay as they are: %s", why)
            self.daemon.live.unreachable[sandbox.id] = why
            left = tries if isinstance(exc, Unavailable) else tries - 1
            self.daemon.supervisor.spawn(f"reach pod {sandbox.id}", lambda: self._again(sandbox.id, limiter, left))
        else:
            _logger.error("pod can't be recovered and counts as stopped: %s", why)
            await self._count_as_dead(sandbox, why)
            self.daemon.live.unreachable.pop(sandbox.id, None)

    async def _again(self, sandbox_id: str, limiter: anyio.CapacityLimiter, tries: int) -> None:
        """Recover a pod whose handler was disabled or whose monitor was away, with its containers perhaps running all the while."""
        await anyio.sleep(self.pause)
        self.daemon.live.recovering[sandbox_id] = anyio.Event()
        await self._one(self.daemon.store.sandboxes[sandbox_id], limiter, tries)

    async def _sandbox(self, sandbox: Sandbox, *, last: bool) -> None:
        if sandbox.restoring and sandbox.state not in _HALF:
            await self._undo_restoring(sandbox)
        elif sandbox.state in _HALF:
            _logger.info("undoing the pod's interrupted %s", "removal" if sandbox.state is SandboxState.REMOVING else "creation")
            await self._finish_removal(sandbox)
        elif sandbox.boot_id != self.daemon.settings.boot_id:
            await self._after_reboot(sandbox)
        else:
            await self._adopt(sandbox, last=last)

    async def _undo_restoring(self, sandbox: Sandbox) -> None:
        """Stop it first, as any pod: a container that is restored with its pod alone can't be signalled before that is done."""
        _logger.info("undoing the pod's interrupted restoration")
        if sandbox.boot_id != self.daemon.settings.boot_id:
            await self._after_reboot(sandbox)
        elif sandbox.id not in self.daemon.live.sandboxes:
            await self._adopt_for_removal(sandbox)
        await self.sandboxes.discard(sandbox.id)

    async def _finish_removal(self, sandbox: Sandbox) -> None:
        if sandbox.boot_id == self.daemon.settings.boot_id and sandbox.id not in self.daemon.live.sandboxes:
            await self._adopt_for_removal(sandbox)
        if sandbox.attachment is not None:
            await self.detacher.detach(sandbox.id, sandbox.attachment)
        if sandbox.state is SandboxState.CREATING or sandbox.attachment is not None:
            await self.daemon.store.apply_sandbox(sandbox.id, "removing", attachment=None)
        await self.sandboxes.discard(sandbox.id)

    async def finish(self, ident: str) -> None:
        """One more try at removing all that is left of a pod or container (core/leftovers); gone is success. Raises BridgeError."""
        sandbox, container = self.daemon.store.sandboxes.get(ident), self.daemon.store.containers.get(ident)
        if sandbox is not None:
            await self._finish_removal(sandbox)
        elif container is not None:
            handle = self.daemon.live.sandboxes.get(container.sandbox_id)
            if handle is not None and ident not in self.daemon.live.containers:
                await self._adopt_container(container, handle)
            await self.containers.discard(ident)

    async def _adopt_for_removal(self, sandbox: Sandbox) -> None:
        try:
            handle = await self._load(sandbox)
        except Unavailable:
            raise
        except BridgeError as exc:
            _logger.warning("the backend can't help with the removal: %s", exc)
            return
        for container in self.daemon.store.members(sandbox.id):
            await self._adopt_container(container, handle)
        self.sandboxes.adopt(sandbox.id, handle)

    async def _after_reboot(self, sandbox: Sandbox) -> None:
        for container in self.daemon.store.members(sandbox.id):
            await self._mark_exited(container, "the node was rebooted")
            await self._undo_half_made(container)
        if sandbox.attachment is not None:
            await self.detacher.detach(sandbox.id, sandbox.attachment)
        await self.daemon.store.apply_sandbox(sandbox.id, "died", attachment=None, pid=0, namespaces={})

    async def _adopt(self, sandbox: Sandbox, *, last: bool) -> None:
        handle = await self._load(sandbox)
        self.sandboxes.adopt(sandbox.id, handle)
        waiting: BridgeError | None = None
        for container in self.daemon.store.members(sandbox.id):
            if container.id in self.daemon.live.containers:  # by an earlier try, which failed for another one
                continue
            try:
                await self._adopt_container(container, handle)
            except Exception as exc:  # noqa: BLE001 - one container's fault must not be the others'
                if isinstance(exc, Unavailable) or (isinstance(exc, _PASSING) and not last):
                    waiting = exc
                    continue
                await self._give_up(container, sandbox, exc)
            await self._undo_half_made(container)
        if waiting is not None:
            raise waiting

    async def _give_up(self, container: Container, sandbox: Sandbox, exc: Exception) -> None:
        why = exc.message if isinstance(exc, BridgeError) else describe(exc)
        known = None if isinstance(exc, BridgeError) else exc
        _logger.error("container %s can't be taken over and is ended: %s", container.id[:13], why, exc_info=known)
        try:
            backend = await self.handlers.reopen(sandbox.handler, sandbox.opening)
            await backend.remove_strangers(lambda ident: ident != container.id)
        except BridgeError as failed:
            _logger.error("what may be left of container %s can't be ended: %s", container.id[:13], failed)
        await self._mark_exited(container, f"it could not be taken over: {why}")

    async def _load(self, sandbox: Sandbox) -> SandboxHandle:
        backend = await self.handlers.reopen(sandbox.handler, sandbox.opening)
        chosen = self.spec_settings.of_handler(self.handlers.policy(sandbox.handler, sandbox.opening))
        request = sandbox_spec(sandbox, backend, self.daemon.settings, self.facts, chosen)
        return await backend.load_sandbox(request, sandbox.backend or {})

    async def _adopt_container(self, container: Container, sandbox: SandboxHandle) -> None:
        if container.state is ContainerState.CREATING and container.backend is None:
            return
        request = await self._request(container)
        try:
            handle = await sandbox.load_container(request, container.backend or {})
        except NotFound as exc:
            await self._mark_exited(container, f"nothing is left of it: {exc}")
            return
        await self._agree(container, handle, request.oci.get("process", {}))

    async def _agree(self, container: Container, handle: ContainerHandle, process: Mapping[str, Any]) -> None:
        pid = handle.pid
        if container.state is ContainerState.STARTING:
            if pid is None:
                await self._mark_exited(container, "the server ended while it was being started")
            else:
                now = stamps.of_start(self.daemon.store, container.id)
                await self.daemon.store.apply_container(container.id, "started", pid=pid, started_at=now, backend=dict(handle.record))
        running = self.daemon.store.containers[container.id].state is ContainerState.RUNNING
        if running and container.paused:
            await let_go_on(container, handle)
            await self.daemon.store.apply_container(container.id, "journal", paused=False)
        self.containers.adopt(container.id, handle, process, running=running)

    async def _request(self, container: Container) -> ContainerSpec:
        bundle = self.daemon.settings.bundle(container.sandbox_id, container.id)
        sandbox = self.daemon.store.sandboxes[container.sandbox_id]
        text = await files.read_text(Path(bundle) / "config.json", limit=16 << 20)
        oci = json.loads(text) if text else {}
        restore = Path(container.checkpoint) if container.checkpoint else None
        return ContainerSpec(container.id, container.sandbox_id, bundle, oci, container_io(container, sandbox), restore)

    async def _undo_half_made(self, container: Container) -> None:
        half = container.state in (ContainerState.CREATING, ContainerState.REMOVING)
        if half and self.daemon.store.containers.get(container.id) is container:
            try:
                await self.containers.discard(container.id)
            except BridgeError as exc:  # what one container left must not cost the others their pod
                await self.daemon.leftovers.keep(container.id, exc.message)

    async def _mark_exited(self, container: Container, why: str) -> None:
        status = ExitStatus(LOST_CODE, at_ns=stamps.after([container.started_at or container.created_at]), reason="ContainerLost")
        if container.state in (ContainerState.RUNNING, ContainerState.STARTING):
            _logger.warning("container %s counts as exited: %s", container.id[:13], why)
            await self.containers.record_exit(container.id, status)
        elif container.state is ContainerState.CREATED:
            await self.daemon.store.apply_container(
                container.id, "abandoned", exit_code=LOST_CODE, reason="ContainerLost", message=why, finished_at=status.at_ns
            )

    async def _count_as_dead(self, sandbox: Sandbox, why: str) -> None:
        for container in self.daemon.store.members(sandbox.id):
            await self._mark_exited(container, why)
        current = self.daemon.store.sandboxes.get(sandbox.id)
        if current is not None and current.state is SandboxState.READY:
            await self.daemon.store.apply_sandbox(sandbox.id, "died", pid=0)
