"""Containers: create, start, stop, remove, look up, and the watch over each one's exit.

Create, start and remove are flights of the daemon keyed by identity. Stop is a task of the daemon with a deadline that a
later, more impatient caller can bring forward; no lock is held while anything is waited for (design promises 1 and 4).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from bridge import log
from bridge.aio import SingleFlight
from bridge.core import lifecycle, stamps, trace, volumes
from bridge.core.container_create import ContainerCreator
from bridge.core.container_remove import Remover
from bridge.core.container_stop import Stopper
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.live import LiveContainer
from bridge.core.model import ContainerConfig
from bridge.core.reasons import exit_reason, start_failure
from bridge.core.sandbox_run import new_id
from bridge.core.selectors import labels_match
from bridge.core.surroundings import Surroundings
from bridge.errors import AlreadyExists, BridgeError, IllegalTransition, NotFound
from bridge.host import mounts
from bridge.ports.images import Images
from bridge.ports.runtime import ContainerHandle, ExitStatus

_logger = log.get("core.containers")
_HALF = (ContainerState.CREATING, ContainerState.REMOVING)
_WAIT_PAUSE = 1.0


class ContainerService:
    """CreateContainer, StartContainer, StopContainer, RemoveContainer, ReopenContainerLog and lookups."""

    def __init__(self, daemon: Surroundings, images: Images, creator: ContainerCreator) -> None:
        self._store, self._live, self._settings = daemon.store, daemon.live, daemon.settings
        self._traces, self._supervisor, self._creating, self._starting = daemon.traces, daemon.supervisor, daemon.creating, daemon.starting
        self._leftovers = daemon.leftovers
        self._creator = creator
        self._remover = Remover(daemon, images)
        self._stopper = Stopper(daemon.store, daemon.live, daemon.settings, daemon.supervisor)
        self.creations: SingleFlight[str, Container] = SingleFlight(daemon.supervisor, "create container")
        self.starts: SingleFlight[str, None] = SingleFlight(daemon.supervisor, "start container")
        self.removals: SingleFlight[str, None] = SingleFlight(daemon.supervisor, "remove container")

    async def create(self, sandbox_id: str, config: ContainerConfig, checkpoint: Path | None = None) -> Container:
        """Make a container in a ready sandbox, or join its making, or return it when an earlier try has made it.

        ``checkpoint`` is the archive of one that goes on, if not the image's name is (core/restoring).
        Raises NotFound (sandbox, image), IllegalTransition (sandbox not ready), AlreadyExists, InvalidRequest, Unsupported.
        """
        sandbox = self._store.sandbox(sandbox_id)
        await self._live.reach(sandbox.id)
        key = self.key(sandbox.id, config)
        return await self.creations.join(key, lambda: self._create(sandbox.id, key, config, checkpoint))

    def key(self, sandbox_id: str, config: ContainerConfig) -> str:
        """Of its creation."""
        return f"{sandbox_id}_{config.metadata.name}_{config.metadata.attempt}"

    async def _create(self, sandbox_id: str, key: str, config: ContainerConfig, checkpoint: Path | None) -> Container:
        sandbox = self._ready(sandbox_id)
        holder = self._store.named(key)
        if holder is not None and self._store.containers[holder].state in _HALF:
            # This flight is the only one of its key, so that one's undo or removal failed. It must not hold the name.
            await self._leftovers.keep(holder, "its creation or removal was cut off")
            with suppress(BridgeError):  # which is kept with it
                await self.discard(holder)
        elif holder is not None:
            earlier = self._store.containers[holder]
            if earlier.state is ContainerState.CREATED and earlier.config == config:
                return earlier
            raise AlreadyExists(f"container {key!r} exists as {holder} and is {earlier.state}; remove it first")
        ident = new_id()
        name = config.metadata.name
        with log.context(pod=sandbox_id[:13], container=ident[:13]):
            async with self._creating.taken(sandbox_id):
                with trace.recording(self._traces, sandbox_id, f"CreateContainer {name}", ident):
                    container = await self._creator.create(ident, sandbox, config, checkpoint)
            _logger.info("container %s created", name)
            return container

    def _ready(self, sandbox_id: str) -> Sandbox:
        sandbox = self._store.sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise IllegalTransition(f"sandbox {sandbox_id} is {sandbox.state}, not ready")
        if sandbox_id in self._live.stopping:
            raise IllegalTransition(f"sandbox {sandbox_id} is being stopped")
        return sandbox

    def find(self, ident: str) -> Container:
        """By id or unique prefix. A container still being made is not there yet. Raises NotFound."""
        container = self._store.container(ident)
        if container.state is ContainerState.CREATING:
            raise NotFound(f"container {ident} not found: it is still being created")
        return container

    def list(
        self,
        ident: str = "",
        sandbox_id: str = "",
        states: frozenset[ContainerState] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Container]:
        """Containers that match every given condition, oldest first; an unknown id gives an empty list."""
        return [
            container
            for container in self._store.containers.values()
            if container.state not in _HALF
            and container.id.startswith(ident)
            and container.sandbox_id.startswith(sandbox_id)
            and (states is None or container.state in states)
            and labels_match(labels, container.config.labels)
        ]

    def bundle(self, container: Container) -> Path:
        """Where its OCI bundle is."""
        return self._settings.bundle(container.sandbox_id, container.id)

    async def start(self, ident: str) -> None:
        """Start a created container. Raises IllegalTransition when it was started before, RuntimeFailed."""
        container = self.find(ident)
        await self._live.reach(container.sandbox_id)
        await self.starts.join(container.id, functools.partial(self._start, container.id))

    async def _start(self, ident: str) -> None:
        container = self._store.container(ident)
        lifecycle.require(container, "starting")  # one that has ended since may have no backend any more
        entry, name = self._live.container(ident), container.config.metadata.name
        with log.context(pod=container.sandbox_id[:13], container=ident[:13]):
            with trace.recording(self._traces, container.sandbox_id, f"StartContainer {name}", ident):
                async with self._starting.taken(container.sandbox_id), entry.changing:
                    pid = await self._launch(ident, entry)
            self.watch(ident)
            await volumes.let_go(container, self.bundle(container))  # the container has mounts of its own by now
            _logger.info("container %s runs, pid %d", name, pid)

    async def _launch(self, ident: str, entry: LiveContainer) -> int:
        if self._store.container(ident).state is ContainerState.CREATED:  # else its own state says why not
            self._ready(self._store.container(ident).sandbox_id)
        with trace.span("journal"):
            await self._store.apply_container(ident, "starting")
        try:
            with trace.span("runtime"):
                pid = await entry.handle.start()
        except BridgeError as exc:
            await self._start_failed(ident, entry, exc)
            raise
        with trace.span("commit"):
            now = stamps.of_start(self._store, ident)
            await self._store.apply_container(ident, "started", pid=pid, started_at=now, backend=dict(entry.handle.record))
        return pid

    async def _start_failed(self, ident: str, entry: LiveContainer, exc: BridgeError) -> None:
        (code, reason), now = start_failure(exc), stamps.of_start(self._store, ident)
        left = await self._store.apply_container(ident, "start-failed", exit_code=code, reason=reason, message=str(exc), finished_at=now)
        entry.exited.set()
        self._supervisor.spawn(f"release {ident}", lambda: self._release(ident, entry))
        self._supervisor.spawn(f"unmount {ident}", lambda: self._unmount(left))

    def adopt(self, ident: str, handle: ContainerHandle, process: Mapping[str, Any], *, running: bool) -> None:
        """Take over a container from before the server's restart."""
        entry = self._live.containers[ident] = LiveContainer(handle, process)
        if running:
            self.watch(ident)
        elif self._store.containers[ident].state is ContainerState.EXITED:
            entry.exited.set()
            self._supervisor.spawn(f"release {ident}", lambda: self._release(ident, entry))  # nobody knows whether it had come to that

    def watch(self, ident: str) -> None:
        """Have the daemon wait for this container's exit."""
        entry = self._live.containers[ident]
        entry.watched = True
        self._supervisor.spawn(f"watch container {ident}", lambda: self._until_exit(ident, entry))

    async def _until_exit(self, ident: str, entry: LiveContainer) -> None:
        status = await self._exit_of(ident, entry)
        container = self._store.containers.get(ident)
        if container is not None and container.state in (ContainerState.RUNNING, ContainerState.STARTING):
            await self.record_exit(ident, status)
        entry.exited.set()
        if container is not None:
            self._supervisor.spawn(f"unmount {ident}", lambda: self._unmount(container))
        await self._release(ident, entry)

    async def _exit_of(self, ident: str, entry: LiveContainer) -> ExitStatus:
        while True:  # a container whose exit nobody waits for would be "running" for ever
            try:
                return await entry.handle.wait()
            except BridgeError as exc:
                if self._live.containers.get(ident) is not entry:  # it was removed meanwhile
                    raise
                _logger.warning("container %s can't be waited for now: %s", ident[:13], exc)
                await anyio.sleep(_WAIT_PAUSE)

    async def _unmount(self, container: Container) -> None:
        # Nothing runs in it any more. The last unmount of an overlay writes its files to the disk: not RemoveContainer's time.
        await volumes.let_go(container, self.bundle(container))
        try:
            await mounts.unmount(self.bundle(container) / "rootfs")
        except BridgeError as exc:
            _logger.warning("container %s: its root filesystem stays mounted until it is removed: %s", container.id[:13], exc)

    async def record_exit(self, ident: str, status: ExitStatus) -> None:
        """Put an exit into the store, with the reason a kubelet expects."""
        # A container may end before its runtime does, and so before the time that counts as its start.
        at = max(status.at_ns or stamps.after(()), self._store.container(ident).started_at)
        await self._store.apply_container(ident, "exited", exit_code=status.code, reason=exit_reason(status), finished_at=at, pid=0)
        _logger.info("container %s exited: code %d%s", ident[:13], status.code, ", out of memory" if status.oom_killed else "")

    async def _release(self, ident: str, entry: LiveContainer) -> None:
        # Freeing the runtime's state right after the exit keeps RemoveContainer cheap; that call repeats what failed here.
        try:
            await entry.handle.release()
            entry.freed = True
        except BridgeError as exc:
            _logger.warning("container %s: the runtime's state is left for its removal: %s", ident[:13], exc)
        finally:
            entry.released.set()

    async def stop(self, ident: str, timeout: float) -> None:
        """Stop signal, then after ``timeout`` s SIGKILL. Absent or ended is success; see container_stop."""
        try:
            container = self._store.container(ident)
        except NotFound:
            return
        await self._live.reach(container.sandbox_id)
        await self.end(container.id, timeout)

    async def end(self, ident: str, timeout: float) -> None:
        """``stop``, for those who own the pod already: recovery, and what takes the whole pod down."""
        if ident in self.starts:
            await self._settled(ident)
        await self._stopper.stop(ident, timeout)

    async def quit(self, ident: str) -> None:
        """``end`` at once, and have no release under way that needs the pod's backend, as far as the kill timeout allows."""
        await self.end(ident, 0.0)
        entry = self._live.containers.get(ident)
        if entry is not None:
            await self._remover.await_release(entry)

    async def _settled(self, ident: str) -> None:
        try:
            await self.starts.join(ident, functools.partial(self._start, ident))
        except BridgeError as exc:
            _logger.debug("the start that a stop waited for failed: %s", exc)

    async def remove(self, ident: str) -> None:
        """Kill it if need be and remove every trace of it but its log. Absent, or not yet made, is success."""
        try:
            container = self._store.container(ident)
        except NotFound:
            return
        await self._live.reach(container.sandbox_id)
        if container.state is ContainerState.CREATING and container.name_key in self.creations:
            return
        await self.discard(container.id)

    async def discard(self, ident: str) -> None:
        """``remove``, for those who own the pod already."""
        await self.removals.join(ident, functools.partial(self._remove, ident))

    async def abort_creations(self, sandbox_id: str) -> None:
        """Cancel what is being created in a pod that goes, and wait until it is undone."""
        for container in self._store.members(sandbox_id):
            if container.state is ContainerState.CREATING:
                await self.creations.cancel(container.name_key)

    async def _remove(self, ident: str) -> None:
        container = self._store.containers.get(ident)
        if container is None:
            return
        with log.context(pod=container.sandbox_id[:13], container=ident[:13]):
            with trace.recording(self._traces, container.sandbox_id, f"RemoveContainer {container.config.metadata.name}", ident):
                await self.end(ident, 0.0)
                await self._remover.take_away(self._store.containers[ident])
                self._live.containers.pop(ident, None)
                await self._store.remove(ident)
            _logger.info("container removed")

    async def reopen_log(self, ident: str) -> None:
        """After the kubelet rotated the log. Raises IllegalTransition when the container is not running."""
        container = self.find(ident)
        await self._live.reach(container.sandbox_id)
        if container.state is not ContainerState.RUNNING:
            raise IllegalTransition(f"container {ident} is {container.state}, not running")
        await self._live.container(container.id).handle.reopen_log()
