"""Pod sandboxes: run, stop, remove, look up.

Each mutation is a flight of the daemon, keyed by the pod's identity: a caller that gives up only leaves, and its retry
joins the running work or collects the result (design promise 1).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.aio import SingleFlight, run_all
from bridge.core import sandbox_death, trace
from bridge.core.containers import ContainerService
from bridge.core.detach import Detacher
from bridge.core.entities import ContainerState, Sandbox, SandboxState
from bridge.core.erase import directory as erase_directory
from bridge.core.model import PodConfig
from bridge.core.sandbox_run import SandboxRunner, new_id
from bridge.core.selectors import labels_match
from bridge.core.surroundings import Surroundings
from bridge.errors import AlreadyExists, BridgeError, NotFound, Unmet
from bridge.host import cgroup_chain, mounts, namespaces
from bridge.ports.handlers import Handlers
from bridge.ports.runtime import Ability, SandboxHandle

_logger = log.get("core.sandboxes")
_WATCH_PAUSE = 1.0
_HALF = (SandboxState.CREATING, SandboxState.REMOVING)


class SandboxService:
    """RunPodSandbox, StopPodSandbox, RemovePodSandbox and the lookups behind Status and List."""

    def __init__(
        self, daemon: Surroundings, handlers: Handlers, containers: ContainerService, runner: SandboxRunner, detacher: Detacher
    ) -> None:
        self._store, self._live, self._settings = daemon.store, daemon.live, daemon.settings
        self._traces, self._supervisor, self._creating = daemon.traces, daemon.supervisor, daemon.creating
        self._leftovers = daemon.leftovers
        self._handlers = handlers
        self._containers = containers
        self._runner = runner
        self._detacher = detacher
        self._shared_tops: set[str] = set()
        self.runs: SingleFlight[str, Sandbox] = SingleFlight(daemon.supervisor, "run pod")
        self.stops: SingleFlight[str, None] = SingleFlight(daemon.supervisor, "stop pod")
        self.removals: SingleFlight[str, None] = SingleFlight(daemon.supervisor, "remove pod")

    async def run(self, config: PodConfig, runtime_handler: str, restoring: str = "") -> Sandbox:
        """Make the pod's sandbox, or join the making of it, or return it when an earlier try has made it.

        ``restoring`` as in the record; with it the pod is removed after an end of the server, until that is taken back.
        Raises NotFound (unknown or disabled handler), AlreadyExists (same identity, other configuration or stopped),
        InvalidRequest, Unsupported, Unavailable (network not ready), NetworkFailed, RuntimeFailed.
        """
        meta = config.metadata
        key = f"{meta.name}_{meta.namespace}_{meta.uid}_{meta.attempt}"
        return await self.runs.join(key, lambda: self._run(key, config, runtime_handler, restoring))

    async def _run(self, key: str, config: PodConfig, runtime_handler: str, restoring: str) -> Sandbox:
        features = self._handlers.backend(runtime_handler).features  # NotFound, before anything else is said
        if restoring and (why := features.lacks(Ability.CHECKPOINT)) is not None:
            raise Unmet(f"handler {runtime_handler or self._handlers.default!r} can't restore a checkpoint here: {why}")
        holder = self._store.named(key)
        if holder is not None:
            await self._live.reach(holder)
            holder = self._store.named(key)
        if holder is not None and self._store.sandboxes[holder].state in _HALF:
            # This flight is the only one of its key, so that one's undo or removal failed. It must not hold the name.
            await self._leftovers.keep(holder, "its creation or removal was cut off")
            with suppress(BridgeError):  # which is kept with it
                await self.discard(holder)
        elif holder is not None:
            return self._earlier(self._store.sandboxes[holder], config, runtime_handler)
        ident = new_id()
        handler = runtime_handler or self._handlers.default
        with log.context(pod=ident[:13]):
            async with self._creating.taken(ident):
                backend = self._handlers.backend(handler)  # again: a reload may have come while others were made
                with trace.recording(self._traces, ident, "RunPodSandbox"):
                    sandbox = await self._runner.run(ident, config, handler, runtime_handler, backend, restoring)
            self._watch(ident)
            _logger.info("pod %s/%s runs on %s", config.metadata.namespace, config.metadata.name, handler)
            return sandbox

    def _earlier(self, sandbox: Sandbox, config: PodConfig, runtime_handler: str) -> Sandbox:
        if sandbox.state is SandboxState.READY and sandbox.config == config and sandbox.runtime_handler == runtime_handler:
            return sandbox
        why = "with another configuration" if sandbox.state is SandboxState.READY else f"and is {sandbox.state}"
        raise AlreadyExists(f"pod {sandbox.name_key!r} exists as sandbox {sandbox.id} {why}; remove it first")

    def find(self, ident: str) -> Sandbox:
        """By id or unique prefix. A sandbox still being made is not there yet. Raises NotFound."""
        sandbox = self._store.sandbox(ident)
        if sandbox.state is SandboxState.CREATING:
            raise NotFound(f"sandbox {ident} not found: it is still being created")
        return sandbox

    def list(self, ident: str = "", ready: bool | None = None, labels: Mapping[str, str] | None = None) -> list[Sandbox]:
        """Sandboxes that match every given condition, oldest first; an unknown id gives an empty list."""
        return [
            sandbox
            for sandbox in self._store.sandboxes.values()
            if sandbox.state not in _HALF
            and sandbox.id.startswith(ident)
            and (ready is None or ready is (sandbox.state is SandboxState.READY))
            and labels_match(labels, sandbox.config.labels)
        ]

    async def stop(self, ident: str) -> None:
        """Kill its containers, take it off the network, drop its namespaces. Absent, not yet made or stopped is success."""
        known = self._made(ident)
        if known is not None:
            await self._live.reach(known)
            await self.stops.join(known, functools.partial(self._stop, known))

    def _made(self, ident: str) -> str | None:
        """The whole id; None for one that does not exist, or that a flight is still making and nobody was told of."""
        try:
            sandbox = self._store.sandbox(ident)
        except NotFound:
            return None
        if sandbox.state is SandboxState.CREATING and sandbox.name_key in self.runs:
            return None
        return sandbox.id

    async def _stop(self, ident: str) -> None:
        sandbox = self._store.sandboxes.get(ident)
        if sandbox is None or sandbox.state is SandboxState.REMOVING:
            return
        stopped = sandbox.state is SandboxState.STOPPED and sandbox.attachment is None
        if stopped and not any(member.state is ContainerState.RUNNING for member in self._store.members(ident)):
            return
        self._live.stopping.add(ident)
        with log.context(pod=ident[:13]), trace.recording(self._traces, ident, "StopPodSandbox"):
            stuck = await self._stop_members(ident)
            await self._tear_down(sandbox)
            if stuck is not None:  # its end may have been theirs
                stuck = await self._stop_members(ident)
            if stuck is not None:
                raise stuck
            if sandbox.state in (SandboxState.READY, SandboxState.STOPPED):
                await self._store.apply_sandbox(ident, "stopped", attachment=None, pid=0)
            _logger.info("pod stopped")

    async def _stop_members(self, ident: str) -> BridgeError | None:
        """Returns why one of them goes on: what holds it, a guest that hangs, may end with the sandbox."""
        with trace.span("stop containers"):
            await self._containers.abort_creations(ident)
            members = self._store.members(ident)
            try:
                await run_all(functools.partial(self._containers.quit, container.id) for container in members)
            except BridgeError as exc:
                _logger.warning("a container does not end: %s", exc)
                return exc.with_traceback(None)
        return None

    async def _tear_down(self, sandbox: Sandbox) -> None:
        """Network, backend and namespaces of a pod, in an order that works after any crash. Each step is idempotent."""
        if sandbox.attachment is not None:
            with trace.span("cni del"):
                await self._detacher.detach(sandbox.id, sandbox.attachment)
        handle = self._live.sandboxes.get(sandbox.id)
        if handle is not None:
            with trace.span("backend stop"):
                await handle.stop()
        with trace.span("namespaces"):
            await namespaces.remove(self._settings.sandbox_dir(sandbox.id) / "ns")

    async def remove(self, ident: str) -> None:
        """Stop it, remove its containers and every trace of it. Absent, or not yet made, is success."""
        known = self._made(ident)
        if known is not None:
            await self._live.reach(known)
            await self.discard(known)

    async def discard(self, ident: str) -> None:
        """``remove``, for those who own the pod already."""
        await self.removals.join(ident, functools.partial(self._remove, ident))

    async def _remove(self, ident: str) -> None:
        await self.stops.join(ident, functools.partial(self._stop, ident))
        if ident not in self._store.sandboxes:
            return
        with log.context(pod=ident[:13]), trace.recording(self._traces, ident, "RemovePodSandbox"):
            sandbox = await self._store.apply_sandbox(ident, "removing")
            try:
                await self._take_away(sandbox)
            except BridgeError as exc:
                await self._leftovers.keep(ident, exc.message)
                raise
            self._live.sandboxes.pop(ident, None)
            await self._store.remove(ident)
            self._live.stopping.discard(ident)
            self._traces.forget(ident)
            _logger.info("pod removed")

    async def _take_away(self, sandbox: Sandbox) -> None:
        for container in self._store.members(sandbox.id):
            await self._containers.discard(container.id)
        handle = self._live.sandboxes.get(sandbox.id)
        if handle is not None:
            with trace.span("backend delete"):
                await handle.delete()
        await self.erase(sandbox)

    async def erase(self, sandbox: Sandbox) -> None:
        """Everything outside the backend that a sandbox may have: mounts, directory, cgroup. Idempotent."""
        directory = self._settings.sandbox_dir(sandbox.id)
        with trace.span("pod files"):
            await mounts.unmount(directory / "shm")
            await erase_directory(directory)
        await self._remove_cgroup(sandbox.id)

    async def _remove_cgroup(self, ident: str) -> None:
        sandbox = self._store.sandboxes[ident]
        if not sandbox.cgroup_owned:
            return
        if await self._leave_to_next_attempt(sandbox):
            return
        with trace.span("cgroup"):
            if not await run_sync(cgroup_chain.remove, sandbox.cgroup_parent, sandbox.cgroup_owned):
                await self._pass_on(sandbox)
            # Tried again by each pod that goes, after it is in the set: whoever is the last below it finds it here.
            for top in tuple(self._shared_tops):
                if await run_sync(cgroup_chain.remove_empty, top):
                    self._shared_tops.discard(top)

    async def _leave_to_next_attempt(self, sandbox: Sandbox) -> bool:
        """Whether another pod is in the same cgroup, as the next attempt of one is: that one owns it from now on."""
        for heir in tuple(self._store.sandboxes.values()):
            same = heir.cgroup_parent == sandbox.cgroup_parent and heir.id != sandbox.id
            if same and heir.state is not SandboxState.REMOVING:
                top = min(filter(None, (heir.cgroup_owned, sandbox.cgroup_owned)), key=len)
                await self._store.apply_sandbox(heir.id, "journal", cgroup_owned=top)
                return True
        return False

    async def _pass_on(self, sandbox: Sandbox) -> None:
        """Other pods stand below what this one had made first. One of them owns it from now on, also after a restart."""
        top = sandbox.cgroup_owned
        self._shared_tops.add(top)
        for heir in tuple(self._store.sandboxes.values()):
            below = heir.cgroup_owned and heir.cgroup_parent.startswith(f"{top}/")
            if below and heir.id != sandbox.id and heir.state is not SandboxState.REMOVING:
                await self._store.apply_sandbox(heir.id, "journal", cgroup_owned=top)
                return

    def adopt(self, ident: str, handle: SandboxHandle) -> None:
        """Take over a sandbox that was running before the server restarted."""
        self._live.sandboxes[ident] = handle
        self._watch(ident)

    def _watch(self, ident: str) -> None:
        handle = self._live.sandboxes[ident]
        if handle.pid is not None:
            self._supervisor.spawn(f"watch pod {ident}", lambda: self._until_death(ident, handle))

    async def _until_death(self, ident: str, handle: SandboxHandle) -> None:
        while True:
            try:
                status = await handle.wait()
                break
            except BridgeError as exc:
                sandbox = self._store.sandboxes.get(ident)
                if sandbox is None or sandbox.state is not SandboxState.READY or self._live.sandboxes.get(ident) is not handle:
                    return
                _logger.warning("pod %s can't be watched now: %s", ident, exc)
                await anyio.sleep(_WATCH_PAUSE)
        sandbox = self._store.sandboxes.get(ident)
        if sandbox is not None and sandbox.state is SandboxState.READY and ident not in self.stops and ident not in self.removals:
            _logger.warning("pod %s died by itself: exit code %d", ident, status.code)
            await self._store.apply_sandbox(ident, "died", pid=0)
            if sandbox_death.held_inside(self._handlers, sandbox):
                await sandbox_death.end_members(self._store, self._live, self._containers, ident, status, self._settings.kill_timeout)
