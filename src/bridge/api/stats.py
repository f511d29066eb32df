"""The statistics RPCs: convert, call core, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from bridge._proto.runtime import v1
from bridge.api import chunks, convert_stats, encoding
from bridge.api.pieces import Pieces
from bridge.core.services import Services


class StatsRpcs(v1.RuntimeServiceBase):
    """ContainerStats, PodSandboxStats, and both as List and as Stream."""

    def __init__(self, core: Services) -> None:
        self._core = core
        self._container_usages = Pieces(convert_stats.container_stats, convert_stats.container_version)
        self._pod_usages = Pieces(convert_stats.pod_sandbox_stats, convert_stats.pod_version)

    async def container_stats(self, message: v1.ContainerStatsRequest) -> v1.ContainerStatsResponse:
        """Of one container, read now."""
        return v1.ContainerStatsResponse(stats=convert_stats.container_stats(await self._core.stats.container(message.container_id)))

    async def list_container_stats(self, message: v1.ListContainerStatsRequest) -> v1.ListContainerStatsResponse:
        """Of all that match, as the sampler read them last."""
        return encoding.ready(v1.ListContainerStatsResponse, await self._containers(message.filter))

    async def stream_container_stats(self, message: v1.StreamContainerStatsRequest) -> AsyncIterator[v1.StreamContainerStatsResponse]:
        """The list in several messages."""
        async for response in chunks.stream(v1.StreamContainerStatsResponse, await self._containers(message.filter)):
            yield response

    async def _containers(self, wanted: v1.ContainerStatsFilter | None) -> Iterator[bytes]:
        condition = wanted or v1.ContainerStatsFilter()
        found = await self._core.stats.containers(condition.id, condition.pod_sandbox_id, condition.label_selector)
        return self._container_usages.of(found, len(self._core.store.containers))

    async def pod_sandbox_stats(self, message: v1.PodSandboxStatsRequest) -> v1.PodSandboxStatsResponse:
        """Of one pod, read now."""
        return v1.PodSandboxStatsResponse(stats=convert_stats.pod_sandbox_stats(await self._core.stats.sandbox(message.pod_sandbox_id)))

    async def list_pod_sandbox_stats(self, message: v1.ListPodSandboxStatsRequest) -> v1.ListPodSandboxStatsResponse:
        """Of all that match, as the sampler read them last."""
        return encoding.ready(v1.ListPodSandboxStatsResponse, await self._pods(message.filter))

    async def stream_pod_sandbox_stats(self, message: v1.StreamPodSandboxStatsRequest) -> AsyncIterator[v1.StreamPodSandboxStatsResponse]:
        """The list in several messages."""
        async for response in chunks.stream(v1.StreamPodSandboxStatsResponse, await self._pods(message.filter)):
            yield response

    async def _pods(self, wanted: v1.PodSandboxStatsFilter | None) -> Iterator[bytes]:
        condition = wanted or v1.PodSandboxStatsFilter()
        found = await self._core.stats.sandboxes(condition.id, condition.label_selector)
        return self._pod_usages.of(found, len(self._core.store.sandboxes))
