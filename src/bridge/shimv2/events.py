"""Where shims bring their events: the service Events/Forward, at the address that they get in TTRPC_ADDRESS.

Go's shims publish in order, one call at a time, retry a refused event a few times and then drop it; some drop all events once the
address is gone. So nothing may depend on an event alone, except what is told in no other way: TaskOOM.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from betterproto2 import Message

from bridge import log
from bridge._proto.containerd import events as messages
from bridge._proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from bridge._proto.containerd.types import Empty
from bridge.errors import CorruptData, InvalidRequest
from bridge.shimv2.encoding import decode, nanoseconds, type_name
from bridge.shimv2.server import Services, Unary, serve

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"

_TYPES: Final[dict[str, type[Message]]] = {
    "containerd.events.TaskCreate": messages.TaskCreate,
    "containerd.events.TaskStart": messages.TaskStart,
    "containerd.events.TaskDelete": messages.TaskDelete,
    "containerd.events.TaskExit": messages.TaskExit,
    "containerd.events.TaskOOM": messages.TaskOom,
    "containerd.events.TaskExecAdded": messages.TaskExecAdded,
    "containerd.events.TaskExecStarted": messages.TaskExecStarted,
    "containerd.events.TaskPaused": messages.TaskPaused,
    "containerd.events.TaskResumed": messages.TaskResumed,
    "containerd.events.TaskCheckpointed": messages.TaskCheckpointed,
}

_logger = log.get("shimv2.events")


@dataclass(frozen=True, slots=True)
class ShimEvent:
    """One event: its containerd namespace, its topic (like /tasks/exit), when it happened (Unix, ns), and what.

    ``event`` is one of the messages of containerd.events; None for a type that isn't known, whose name is in ``type``.
    """

    namespace: str
    topic: str
    at_ns: int
    type: str
    event: Message | None


@asynccontextmanager
async def serve_events(path: Path, on_event: Callable[[ShimEvent], None]) -> AsyncIterator[None]:
    """Take shims' events at the unix socket ``path`` while the block runs; its name is what TTRPC_ADDRESS holds.

    ``on_event`` is called from the loop, in the order of each shim, and must not wait. Raises HostError as ``server.serve``.
    """
    async with serve(path, event_services(on_event)):
        yield


def event_services(on_event: Callable[[ShimEvent], None]) -> Services:
    """The service by itself, to be served anywhere. An event that can't be read is refused with InvalidRequest."""

    async def forward(request: ForwardRequest) -> Empty:
        on_event(event(request))
        return Empty()

    return {SERVICE: {"Forward": Unary(ForwardRequest, forward)}}


def event(request: ForwardRequest) -> ShimEvent:
    """What a request brings. Raises InvalidRequest when it can't be read."""
    envelope = request.envelope
    if envelope is None or envelope.event is None:
        raise InvalidRequest("an event is missing", field="envelope.event")
    name = type_name(envelope.event)
    cls = _TYPES.get(name)
    if cls is None:
        _logger.debug("an event of the unknown type %r", name)
    try:
        found = None if cls is None else decode(cls, envelope.event.value)
    except CorruptData as exc:
        raise InvalidRequest(exc.message, field="envelope.event.value") from exc
    return ShimEvent(envelope.namespace, envelope.topic, nanoseconds(envelope.timestamp), name, found)
