"""A pod with its containers at one moment: the answer of PodSandboxStatus, and what each event carries, in the same form.

A kubelet with evented PLEG compares the times of both, so they are from one clock (core/events). Encoded parts are kept by revision:
an event of a pod with many containers encodes only what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from bridge._proto.runtime import v1
from bridge.api import convert, encoding
from bridge.api.pieces import Pieces, revision
from bridge.core.entities import Container, Sandbox
from bridge.core.events import ContainerEvent, Kind
from bridge.core.services import Services

_KINDS = {
    Kind.CREATED: v1.ContainerEventType.CONTAINER_CREATED_EVENT,
    Kind.STARTED: v1.ContainerEventType.CONTAINER_STARTED_EVENT,
    Kind.STOPPED: v1.ContainerEventType.CONTAINER_STOPPED_EVENT,
    Kind.DELETED: v1.ContainerEventType.CONTAINER_DELETED_EVENT,
}


class Snapshots:
    """Makes both messages. One for the server, so that they share what is kept."""

    def __init__(self, core: Services) -> None:
        self._core = core
        self._pods = Pieces(convert.pod_sandbox_status, revision)
        self._containers = Pieces(convert.container_status, revision)

    def status(self, sandbox: Sandbox, containers: Iterable[Container], at: int, info: Mapping[str, str]) -> v1.PodSandboxStatusResponse:
        """The answer to PodSandboxStatus; ``at`` is when it was true, Unix ns."""
        rest = encoding.encode(v1.PodSandboxStatusResponse(info=dict(info), timestamp=at))
        return encoding.ready(v1.PodSandboxStatusResponse, [rest, *self._parts(sandbox, containers, 1, 3)])

    def event(self, event: ContainerEvent) -> v1.ContainerEventResponse:
        """One event of GetContainerEvents."""
        rest = encoding.encode(
            v1.ContainerEventResponse(container_id=event.subject, container_event_type=_KINDS[event.kind], created_at=event.at)
        )
        return encoding.ready(v1.ContainerEventResponse, [rest, *self._parts(event.sandbox, event.containers, 4, 5)])

    def _parts(self, sandbox: Sandbox, containers: Iterable[Container], pod: int, container: int) -> Iterable[bytes]:
        pods = self._pods.of((sandbox,), len(self._core.store.sandboxes))
        members = self._containers.of(containers, len(self._core.store.containers))
        return chain((encoding.renumbered(pod, piece) for piece in pods), (encoding.renumbered(container, piece) for piece in members))
