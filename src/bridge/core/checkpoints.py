"""CheckpointContainer: a running container written down as an archive, while it stands still, and then it goes on.

It belongs to its call: who gives up, or stops the container, ends it, and the container goes on at once (a frozen one would withstand
its signals). That it stands still is journaled, so that a server that ended meanwhile lets it go on when it is back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.core import checkpoint_documents, pod_namespaces, trace
from bridge.core.containers import ContainerService
from bridge.core.entities import Container, ContainerState, Sandbox
from bridge.core.surroundings import Surroundings
from bridge.errors import BridgeError, HostError, IllegalTransition, InvalidRequest, NotFound, TimedOut, Unmet, Unsupported
from bridge.host import files
from bridge.host.oci_documents import write_json
from bridge.ports.checkpoints import PROCESSES, Checkpointing, PodCheckpointing
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images
from bridge.ports.runtime import Ability

_logger = log.get("core.checkpoints")
_SPEC_BYTES = 16 << 20
DEFAULT_SECONDS = 300.0
"""What a checkpoint may take when the caller says nothing."""


class CheckpointService:
    """See the module docstring."""

    def __init__(self, daemon: Surroundings, handlers: Handlers, images: Images, containers: ContainerService) -> None:
        self._daemon, self._handlers, self._containers = daemon, handlers, containers
        self._images, self.files = images, images.checkpoints

    async def container(self, ident: str, location: str, timeout: int) -> None:
        """Write the archive ``location`` within ``timeout`` seconds (0: DEFAULT_SECONDS). The container goes on, whatever happens.

        Raises InvalidRequest, NotFound, IllegalTransition (it does not run, or is being stopped), Unmet (CRIU on this node can't),
        Unsupported (user namespaces, a handler without), TimedOut, RuntimeFailed with CRIU's words, HostError.
        """
        path = await to_thread.run_sync(checked, location, timeout)
        container = self._containers.find(ident)
        await self._daemon.live.reach(container.sandbox_id)
        self.able(container)
        seconds = float(timeout or DEFAULT_SECONDS)
        with log.context(pod=container.sandbox_id[:13], container=container.id[:13]):
            with trace.recording(self._daemon.traces, container.sandbox_id, f"CheckpointContainer {container.config.metadata.name}"):
                async with self.within((container.id,), seconds), self.described(container.id) as directory:
                    async with self.standing_still(container.id) as handle:
                        await self.dump(container.id, handle, directory, seconds)
                    with trace.span("archive"):
                        await self.files.pack(directory, path)
            _logger.info("container %s is checkpointed", container.config.metadata.name)

    def able(self, container: Container) -> Checkpointing:
        """The container's handle. Raises as ``container``."""
        running(container)
        sandbox = self._daemon.store.sandbox(container.sandbox_id)
        handler = f"container {container.id}: handler {sandbox.handler!r}"
        features = self._handlers.backend(sandbox.handler, sandbox.opening).features
        handle = self._daemon.live.container(container.id).handle
        if self.whole(sandbox) is not None:
            raise Unsupported(f"{handler} has checkpoints of whole pods alone: ask for CheckpointPod")
        if not isinstance(handle, Checkpointing):
            raise Unsupported(f"{handler} has no checkpoints: {features.lacks(Ability.CHECKPOINT) or 'its plugin has none'}")
        for ability in (Ability.CHECKPOINT, Ability.PAUSE):
            if (why := features.lacks(ability)) is not None:
                raise Unmet(f"{handler} can't {ability.value} here: {why}")
        if pod_namespaces.pin(sandbox) is not None:
            raise Unsupported(f"container {container.id}: its pod has a user namespace, which its runtime can't restore into")
        return handle

    def whole(self, sandbox: Sandbox) -> PodCheckpointing | None:
        """The pod's handle, if it is checkpointed as one. Raises Unmet where that can't be done now."""
        handle = self._daemon.live.sandboxes.get(sandbox.id)
        if not isinstance(handle, PodCheckpointing):
            return None
        why = self._handlers.backend(sandbox.handler, sandbox.opening).features.lacks(Ability.CHECKPOINT)
        if why is not None:
            raise Unmet(f"sandbox {sandbox.id}: handler {sandbox.handler!r} can't checkpoint here: {why}")
        return handle

    @asynccontextmanager
    async def within(self, idents: Sequence[str], seconds: float) -> AsyncIterator[None]:
        """Nothing else is changed about these containers in the block, which a stop of one ends, as ``seconds`` do.

        Raises IllegalTransition, TimedOut.
        """
        entries = [self._daemon.live.container(ident) for ident in sorted(idents)]  # in an order, so that two never wait for each other
        began = anyio.current_time()
        with anyio.move_on_after(seconds) as scope:
            async with AsyncExitStack() as held:
                for entry in entries:
                    await held.enter_async_context(entry.changing)
                    entry.checkpoint = scope
                    held.callback(setattr, entry, "checkpoint", None)
                yield
        if scope.cancelled_caught:
            if anyio.current_time() - began < seconds:
                raise IllegalTransition(f"the checkpoint was ended by a stop of container {' or '.join(idents)}")
            raise TimedOut(f"the checkpoint of container {', '.join(idents)} was not there within {seconds:g} s")

    @asynccontextmanager
    async def described(self, ident: str) -> AsyncIterator[Path]:
        """A directory for the checkpoint of the running container, with its documents; it goes at the block's end."""
        container = self._daemon.store.container(ident)
        running(container)  # it may have ended while another change was waited for
        oci = await self._spec(container)
        async with Rollback(f"checkpoint {ident[:12]}", step_timeout=self._daemon.settings.undo_timeout) as after:  # never committed
            after.push("remove its files", lambda: self.files.end(ident))
            directory = await self.files.begin(ident)
            await self._describe(container, oci, directory)
            yield directory

    @asynccontextmanager
    async def standing_still(self, ident: str) -> AsyncIterator[Checkpointing]:
        """The container doesn't move in the block."""
        handle = self.able(self._daemon.store.container(ident))
        async with Rollback(f"let {ident[:12]} go on", step_timeout=self._daemon.settings.undo_timeout) as after:  # never committed
            after.push("note that it goes on", lambda: self._noted(ident, paused=False))
            await self._noted(ident, paused=True)
            after.push("let it go on", functools.partial(_resume, handle, self._lives(ident)))
            with trace.span("pause"):
                await handle.pause()
            yield handle

    async def dump(self, ident: str, handle: Checkpointing, directory: Path, seconds: float) -> None:
        """Write down what stands still."""
        with trace.span("runtime"):
            await handle.checkpoint(directory / PROCESSES, directory, timeout=seconds)
        with trace.span("rootfs"):
            await self.files.write_diff(ident, directory)

    async def _noted(self, ident: str, *, paused: bool) -> None:
        container = self._daemon.store.containers.get(ident)
        if container is not None and container.state is ContainerState.RUNNING:
            await self._daemon.store.apply_container(ident, "journal", paused=paused)

    def _lives(self, ident: str) -> Callable[[], bool]:
        return lambda: ident in self._daemon.store.containers and self._daemon.store.containers[ident].state is ContainerState.RUNNING

    async def _describe(self, container: Container, oci: dict[str, Any], directory: Path) -> None:
        sandbox = self._daemon.store.sandbox(container.sandbox_id)
        image = self._images.find(container.image_id)
        names = () if image is None else (*image.repo_tags, *image.repo_digests)

        def write() -> None:
            try:
                (directory / PROCESSES).mkdir(mode=0o700)
                for name, document in checkpoint_documents.documents(container, sandbox, oci, names).items():
                    write_json(directory / name, document)
            except OSError as exc:
                raise HostError(f"can't write {exc.filename}: {exc.strerror}", errno=exc.errno) from exc

        await to_thread.run_sync(write)

    async def _spec(self, container: Container) -> dict[str, Any]:
        path = self._containers.bundle(container) / "config.json"
        found = json.loads(await files.read_text(path, limit=_SPEC_BYTES) or "{}")
        return found if isinstance(found, dict) else {}


async def _resume(handle: Checkpointing, lives: Callable[[], bool]) -> None:
    try:
        await handle.resume()
    except BridgeError:
        if lives():
            raise


async def let_go_on(container: Container, handle: object) -> None:
    """Recovery's part: have a container go on that stood still when the server ended. Raises BridgeError."""
    if container.paused and isinstance(handle, Checkpointing):
        _logger.warning("container %s stood still for a checkpoint that was cut off: it goes on", container.id[:13])
        await handle.resume()


def running(container: Container) -> None:
    """Raises IllegalTransition for one that does not run."""
    if container.state is not ContainerState.RUNNING:
        raise IllegalTransition(f"container {container.id} is {container.state}: only a running one can be checkpointed")


def checked(location: str, timeout: int = 0, field: str = "location") -> Path:
    """The path of an archive that is to be made. Blocks. Raises InvalidRequest, NotFound."""
    if timeout < 0:
        raise InvalidRequest("must not be negative", field="timeout")
    path = Path(location)
    if not path.is_absolute() or "\0" in location or location.endswith("/"):
        raise InvalidRequest(f"{location!r} must be the absolute path of a file", field=field)
    if not path.parent.is_dir():
        raise NotFound(f"{field}: {path.parent} is no directory")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InvalidRequest(f"{location!r} is there and is no file", field=field)
    return path
