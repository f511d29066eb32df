"""The statistics RPCs: convert, call core, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TypeVar

from bridge._proto.runtime import v1
from bridge.api import convert_stats
from bridge.core.services import Services
from bridge.core.stats import ContainerUsage, PodUsage

T = TypeVar("T")
_CHUNK = 100
"""Items in one message of a stream."""


class StatsRpcs(v1.RuntimeServiceBase):
    """ContainerStats, PodSandboxStats, and both as List and as Stream."""

    def __init__(self, core: Services) -> None:
        self._core = core

    async def container_stats(self, message: v1.ContainerStatsRequest) -> v1.ContainerStatsResponse:
        """Of one container."""
        return v1.ContainerStatsResponse(stats=convert_stats.container_stats(await self._core.stats.container(message.container_id)))

    async def list_container_stats(self, message: v1.ListContainerStatsRequest) -> v1.ListContainerStatsResponse:
        """Of all that match."""
        found = await self._containers(message.filter)
        return v1.ListContainerStatsResponse(stats=[convert_stats.container_stats(one) for one in found])

    async def stream_container_stats(self, message: v1.StreamContainerStatsRequest) -> AsyncIterator[v1.StreamContainerStatsResponse]:
        """The list in several messages."""
        for chunk in _chunks(await self._containers(message.filter)):
            yield v1.StreamContainerStatsResponse(container_stats=[convert_stats.container_stats(one) for one in chunk])

    async def _containers(self, wanted: v1.ContainerStatsFilter | None) -> Sequence[ContainerUsage]:
        condition = wanted or v1.ContainerStatsFilter()
        return await self._core.stats.containers(condition.id, condition.pod_sandbox_id, condition.label_selector)

    async def pod_sandbox_stats(self, message: v1.PodSandboxStatsRequest) -> v1.PodSandboxStatsResponse:
        """Of one pod."""
        return v1.PodSandboxStatsResponse(stats=convert_stats.pod_sandbox_stats(await self._core.stats.sandbox(message.pod_sandbox_id)))

    async def list_pod_sandbox_stats(self, message: v1.ListPodSandboxStatsRequest) -> v1.ListPodSandboxStatsResponse:
        """Of all that match."""
        found = await self._pods(message.filter)
        return v1.ListPodSandboxStatsResponse(stats=[convert_stats.pod_sandbox_stats(one) for one in found])

    async def stream_pod_sandbox_stats(self, message: v1.StreamPodSandboxStatsRequest) -> AsyncIterator[v1.StreamPodSandboxStatsResponse]:
        """The list in several messages."""
        for chunk in _chunks(await self._pods(message.filter)):
            yield v1.StreamPodSandboxStatsResponse(pod_sandbox_stats=[convert_stats.pod_sandbox_stats(one) for one in chunk])

    async def _pods(self, wanted: v1.PodSandboxStatsFilter | None) -> Sequence[PodUsage]:
        condition = wanted or v1.PodSandboxStatsFilter()
        return await self._core.stats.sandboxes(condition.id, condition.label_selector)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
