"""The Admin service: what the ``cri-bridge`` command asks of a running server beyond CRI."""

from __future__ import annotations

import json

from bridge._proto.bridge.admin import v1
from bridge._proto.runtime import v1 as pb
from bridge.api import convert_config
from bridge.api.admin_images import ImageAdminRpcs
from bridge.core.preview import Adjust
from bridge.core.services import Services
from bridge.errors import NotFound
from bridge.images.store import ImageStore
from bridge.ports.handlers import HandlerState


class AdminRpcs(ImageAdminRpcs):
    """Trace, Handlers, PreviewSpec, CollectGarbage, RemoveOrphans, and the RPCs about images."""

    def __init__(self, core: Services, images: ImageStore, adjust: Adjust) -> None:
        super().__init__(images)
        self._core = core
        self._adjust = adjust

    async def trace(self, message: v1.TraceRequest) -> v1.TraceResponse:
        """Where the pod's start spent its time. NotFound when the server has restarted since."""
        sandbox = self._core.store.sandbox(message.pod_sandbox_id)
        spans = self._core.traces.of(sandbox.id)
        if not spans:
            raise NotFound(f"there is no trace of pod {sandbox.id}: it was started before this server was")
        found = [
            v1.Span(name=span.name, start=span.start, duration=span.duration, depth=span.depth, trace_id=span.trace_id) for span in spans
        ]
        return v1.TraceResponse(pod_sandbox_id=sandbox.id, spans=found)

    async def handlers(self, message: v1.HandlersRequest) -> v1.HandlersResponse:
        """The configured handlers, usable or not."""
        del message
        registry = self._core.ports.handlers
        return v1.HandlersResponse(handlers=[_handler(state, registry.default) for state in registry.states()])

    async def preview_spec(self, message: v1.PreviewSpecRequest) -> v1.PreviewSpecResponse:
        """What a container, or without one the pod's own, would get. Makes nothing; refuses as RunPodSandbox and CreateContainer would."""
        pod = convert_config.pod_config(pb.PodSandboxConfig.parse(message.pod), "pod")
        if message.container:
            container = convert_config.container_config(pb.ContainerConfig.parse(message.container), "container")
            preview = await self._core.previewer.container(message.handler, pod, container, self._adjust)
        else:
            preview = await self._core.previewer.sandbox(message.handler, pod)
        steps = [v1.SpecStep(source=step.source, spec=json.dumps(step.spec).encode()) for step in preview.steps]
        return v1.PreviewSpecResponse(steps=steps, notes=list(preview.notes))

    async def collect_garbage(self, message: v1.CollectGarbageRequest) -> v1.CollectGarbageResponse:
        """Remove what nothing refers to, now."""
        del message
        before = self._images.image_usage().used_bytes
        layers = await self._images.gc()
        return v1.CollectGarbageResponse(layers=layers, freed_bytes=max(0, before - self._images.image_usage().used_bytes))

    async def remove_orphans(self, message: v1.RemoveOrphansRequest) -> v1.RemoveOrphansResponse:
        """Remove what no record owns, and what is left of what was to go, now."""
        del message
        return v1.RemoveOrphansResponse(removed=list(await self._core.remove_remains()))


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
