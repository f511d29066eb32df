"""What happens to pods and containers, told as it happens: the events behind GetContainerEvents (CRI; KEP-3386, evented PLEG).

The store tells the hub of each change that it has committed; the hub makes events of those that a kubelet knows, with the pod and
its containers as they are at that moment, and offers them to each subscriber's own queue. Order is the order of commits, so that of
one container it is always created, started, stopped, deleted, however quickly it ends. Times grow strictly (see event_times), so that a
kubelet never takes an older state for a newer one. While nobody listens a change costs one comparison.

Nothing is ever left out of a stream: a subscriber that falls behind by more than its queue holds is ended, and has to list anew.
What happened shortly after the server's start, above all what recovery found ended, is kept for a minute for those who come back then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import anyio

from bridge import log
from bridge.aio import Broadcast, Subscription
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.event_times import EventTimes
from bridge.core.store import Change, Store
from bridge.errors import LimitExceeded

_logger = log.get("core.events")

QUEUE = 2048
"""Events that one subscriber may be behind: the end of 250 pods at once, several times over. An event holds references, no copies."""
KEPT_SECONDS = 60.0
"""For how long after the server's start its first events are kept for subscribers: kubelets are back within seconds."""

_HALF = (ContainerState.CREATING, ContainerState.REMOVING)


class Kind(StrEnum):
    """CRI's ContainerEventType."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


OF_SANDBOXES: Mapping[str, tuple[Kind, ...]] = {
    "created": (Kind.CREATED, Kind.STARTED),
    "stopped": (Kind.STOPPED,),
    "died": (Kind.STOPPED,),
    "removed": (Kind.DELETED,),
}
OF_CONTAINERS: Mapping[str, tuple[Kind, ...]] = {
    "created": (Kind.CREATED,),
    "started": (Kind.STARTED,),
    "start-failed": (Kind.STOPPED,),
    "exited": (Kind.STOPPED,),
    "abandoned": (Kind.STOPPED,),
    "removed": (Kind.DELETED,),
}
"""The store's events that are told, and as what. The others (see lifecycle) change nothing that has an event in the CRI."""


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """``subject`` is the id of the container, or of the sandbox when it happened to that. ``at`` is Unix time in ns, strictly growing.

    ``sandbox`` and ``containers`` are as they were right after the event; a deleted container is no longer among them, a deleted
    sandbox is as it was last.
    """

    subject: str
    kind: Kind
    at: int
    sandbox: Sandbox
    containers: tuple[Container, ...]


class EventHub:
    """See the module docstring. One for the server; it attaches itself to ``store``."""

    def __init__(self, store: Store, *, queue: int = QUEUE) -> None:
        self._store = store
        self._queue = queue
        self._feed: Broadcast[ContainerEvent] = Broadcast(limit=queue)
        self._recent: list[ContainerEvent] | None = []
        self._unborn: set[str] = set()
        self.times = EventTimes(_newest(store))
        self.overflows = 0
        """Subscribers that were ended because they fell behind."""
        store.observer = self._observe

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._feed)

    @property
    def behind(self) -> int:
        """How many events wait for the slowest of them."""
        return self._feed.behind()

    def now(self) -> int:
        """Unix time in ns, later than every event and every time that was given out before."""
        return self.times.now()

    def members(self, sandbox_id: str) -> tuple[Container, ...]:
        """The containers of a pod that a list shows too: not those half made or half removed."""
        return tuple(member for member in self._store.members(sandbox_id) if member.state not in _HALF)

    @asynccontextmanager
    async def subscribe(self, end: Callable[[LimitExceeded], None]) -> AsyncIterator[Subscription[ContainerEvent]]:
        """All events while the block is open, and before them those of the server's start while they are kept.

        ``end`` is called, once, when the subscriber has fallen behind; nothing more comes then.
        """

        def overflowed() -> None:
            self.overflows += 1
            _logger.warning("a subscriber of container events fell %d behind: its stream is ended", self._queue)
            end(LimitExceeded(f"{self._queue} container events are waiting to be read: the stream is ended; subscribe again and list anew"))

        async with self._feed.subscribe(self._recent or (), overflowed) as events:
            yield events

    async def keep_first(self, seconds: float = KEPT_SECONDS) -> None:
        """Keep the first events for late subscribers for so long; then they cost nothing any more."""
        await anyio.sleep(seconds)
        self._recent = None

    def _observe(self, change: Change) -> None:
        if not self._feed and self._recent is None:
            return
        entity = change.after or change.before
        assert entity is not None
        if self._is_unborn(change, entity.id):
            return
        if isinstance(entity, Sandbox):
            told = OF_SANDBOXES.get(change.event, ())
            if Kind.STOPPED in told and change.before is not None and change.before.state is not SandboxState.READY:
                return  # a stop may be repeated
            sandbox: Sandbox | None = entity
        else:
            told = OF_CONTAINERS.get(change.event, ())
            sandbox = self._store.sandboxes.get(entity.sandbox_id)
        if sandbox is None:
            return  # its pod's record is gone before it: no kubelet could tell what it belongs to
        for kind in told:
            self._publish(ContainerEvent(entity.id, kind, self.now(), sandbox, self.members(sandbox.id)))

    def _is_unborn(self, change: Change, ident: str) -> bool:
        """Whether it goes before it was ever told of: a failed creation is undone in silence."""
        before = change.before
        if change.event == "removing" and before is not None and before.state in (SandboxState.CREATING, ContainerState.CREATING):
            self._unborn.add(ident)
        if change.event != "removed" or before is None:
            return False
        if ident in self._unborn:
            self._unborn.discard(ident)
            return True
        return before.state in (SandboxState.CREATING, ContainerState.CREATING)

    def _publish(self, event: ContainerEvent) -> None:
        if self._recent is not None:
            self._recent.append(event)
            if len(self._recent) > self._queue:
                _logger.info("more than %d events since the start: none of them is kept any longer", self._queue)
                self._recent = None
        self._feed.publish(event)


def _newest(store: Store) -> int:
    """The latest time on any record: an earlier server may have told of it."""
    times = [sandbox.created_at for sandbox in store.sandboxes.values()]
    for container in store.containers.values():
        times += (container.created_at, container.started_at, container.finished_at)
    return max(times, default=0)
