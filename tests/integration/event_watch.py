"""A subscriber of container events, as a kubelet with evented PLEG is one."""

from __future__ import annotations

from contextlib import aclosing

import anyio

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient
from tests.integration.daemon_node import Kubelet

CREATED, STARTED, STOPPED, DELETED = (
    pb.ContainerEventType[f"CONTAINER_{name}_EVENT"] for name in ("CREATED", "STARTED", "STOPPED", "DELETED")
)


class Watch:
    """Gathers what it is sent while ``run`` runs."""

    def __init__(self) -> None:
        self.events: list[pb.ContainerEventResponse] = []

    async def run(self, cri: CriClient) -> None:
        """Until it is cancelled."""
        async with aclosing(cri.runtime.get_container_events()) as events:
            async for event in events:
                self.events.append(event)

    async def heard(self, kubelet: Kubelet) -> None:
        """Have something happen until an event comes: from then on none is missed."""
        pod = await kubelet.run()
        with anyio.fail_after(30):
            while not self.events:
                await kubelet.remove(await kubelet.create(pod, name="marker"))

    def of(self, ident: str) -> list[pb.ContainerEventResponse]:
        """Those of one container, or of a sandbox itself."""
        return [event for event in self.events if event.container_id == ident]

    async def until(self, ident: str, last: pb.ContainerEventType) -> list[pb.ContainerEventType]:
        """The kinds of events of ``ident``, once ``last`` is among them."""
        with anyio.fail_after(30):
            while last not in (kinds := [event.container_event_type for event in self.of(ident)]):
                await anyio.sleep(0.02)
        return kinds


def snapshot(event: pb.ContainerEventResponse) -> dict[str, pb.ContainerStatus]:
    """The containers that an event carries, by id."""
    return {status.id: status for status in event.containers_statuses}
