"""GetContainerEvents: what happens to pods and containers, to each subscriber as a stream of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

from bridge._proto.runtime import v1
from bridge.api import calls
from bridge.api.snapshots import Snapshots
from bridge.core.services import Services


class EventRpcs(v1.RuntimeServiceBase):
    """GetContainerEvents."""

    def __init__(self, core: Services) -> None:
        self._core = core
        self._snapshots = Snapshots(core)

    async def get_container_events(self, message: v1.GetEventsRequest) -> AsyncIterator[v1.ContainerEventResponse]:
        """Every event from now on, until the client goes; RESOURCE_EXHAUSTED when it falls too far behind."""
        del message
        async with self._core.events.subscribe(calls.ender()) as events:
            async for event in events:
                yield self._snapshots.event(event)
