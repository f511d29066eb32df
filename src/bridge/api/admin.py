"""The Admin service: what the ``cri-bridge`` command asks of a running server beyond CRI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge._proto.bridge.admin import v1
from bridge.core.services import Services
from bridge.errors import InvalidRequest, NotFound
from bridge.ports.handlers import HandlerState
from bridge.ports.images import Image


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed."""

    images: int
    layers: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class AdminActions:
    """What the daemon lends to this service: importing an archive, collecting garbage."""

    import_archive: Callable[[Path, str | None], Awaitable[Sequence[Image]]]
    collect: Callable[[], Awaitable[Collected]]


class AdminRpcs(v1.AdminBase):
    """ImportImage, Trace, Handlers, CollectGarbage."""

    def __init__(self, core: Services, actions: AdminActions) -> None:
        super().__init__()
        self._core = core
        self._actions = actions

    async def import_image(self, message: v1.ImportImageRequest) -> v1.ImportImageResponse:
        """Load an archive or layout of this host."""
        if not message.path.startswith("/"):
            raise InvalidRequest(f"{message.path!r} must be absolute", field="path")
        images = await self._actions.import_archive(Path(message.path), message.reference or None)
        return v1.ImportImageResponse(images=[v1.ImportedImage(id=image.id, tags=list(image.repo_tags)) for image in images])

    async def trace(self, message: v1.TraceRequest) -> v1.TraceResponse:
        """Where the pod's start spent its time. NotFound when the server has restarted since."""
        sandbox = self._core.store.sandbox(message.pod_sandbox_id)
        spans = self._core.traces.of(sandbox.id)
        if not spans:
            raise NotFound(f"there is no trace of pod {sandbox.id}: it was started before this server was")
        found = [v1.Span(name=span.name, start=span.start, duration=span.duration, depth=span.depth) for span in spans]
        return v1.TraceResponse(pod_sandbox_id=sandbox.id, spans=found)

    async def handlers(self, message: v1.HandlersRequest) -> v1.HandlersResponse:
        """The configured handlers, usable or not."""
        del message
        registry = self._core.ports.handlers
        return v1.HandlersResponse(handlers=[_handler(state, registry.default) for state in registry.states()])

    async def collect_garbage(self, message: v1.CollectGarbageRequest) -> v1.CollectGarbageResponse:
        """Remove what nothing refers to, now."""
        del message
        done = await self._actions.collect()
        return v1.CollectGarbageResponse(images=done.images, layers=done.layers, freed_bytes=done.freed_bytes)


def _handler(state: HandlerState, default: str) -> v1.Handler:
    abilities = state.features.abilities.items() if state.features else ()
    return v1.Handler(
        name=state.name,
        plugin=state.plugin,
        enabled=state.features is not None,
        reason=state.disabled_reason,
        version=state.features.version if state.features else "",
        default=state.name == default,
        abilities=[v1.Ability(name=str(ability), support=str(feature.support)) for ability, feature in abilities],
    )
