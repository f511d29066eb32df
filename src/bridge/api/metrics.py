"""The metrics RPCs: ListMetricDescriptors, ListPodSandboxMetrics and its stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio.lowlevel

from bridge._proto.runtime import v1
from bridge.api import chunks, convert_metrics, encoding
from bridge.core.services import Services

_AT_A_TIME = 8
"""Pods between two turns of others: some 3 ms of work."""


class MetricsRpcs(v1.RuntimeServiceBase):
    """What a kubelet with PodAndContainerStatsFromCRI serves at /metrics/cadvisor."""

    def __init__(self, core: Services) -> None:
        self._core = core

    async def list_metric_descriptors(self, message: v1.ListMetricDescriptorsRequest) -> v1.ListMetricDescriptorsResponse:
        """Of the groups that are configured."""
        del message
        return v1.ListMetricDescriptorsResponse(descriptors=[convert_metrics.descriptor(row) for row in self._core.metrics.descriptors])

    async def list_pod_sandbox_metrics(self, message: v1.ListPodSandboxMetricsRequest) -> v1.ListPodSandboxMetricsResponse:
        """Of all pods that are ready, as the sampler read them last."""
        del message
        pieces = []
        for pod in await self._core.metrics.pods():
            pieces.append(convert_metrics.pod_piece(pod))
            if len(pieces) % _AT_A_TIME == 0:
                await anyio.lowlevel.checkpoint()
        return encoding.ready(v1.ListPodSandboxMetricsResponse, pieces)

    async def stream_pod_sandbox_metrics(
        self, message: v1.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[v1.StreamPodSandboxMetricsResponse]:
        """The list in several messages."""
        del message
        pieces = map(convert_metrics.pod_piece, await self._core.metrics.pods())
        async for response in chunks.stream(v1.StreamPodSandboxMetricsResponse, pieces):
            yield response
