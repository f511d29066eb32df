"""The two transition tables: which event may happen in which state, and what state follows.

Everything that affects a state lives in this file, and nothing else assigns one. An event that the table does not list
is illegal: the caller gets IllegalTransition and nothing has changed (house rule 3).

    sandbox:    creating ─created→ ready ─stopped|died→ stopped ─removing→ removing ─(record deleted)
    container:  creating ─created→ created ─starting→ starting ─started→ running ─exited→ exited ─removing→ removing
                                                        └─start-failed→ exited
``journal`` records facts (an address, a pid) without a change of state. ``removing`` is legal from everywhere: a
Remove must always make progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from bridge.core.entities import Container, ContainerState, SandboxState
from bridge.errors import IllegalTransition

_S = SandboxState
_C = ContainerState

SANDBOX: Mapping[tuple[SandboxState, str], SandboxState] = {
    (_S.CREATING, "journal"): _S.CREATING,
    (_S.CREATING, "created"): _S.READY,
    (_S.READY, "journal"): _S.READY,
    (_S.READY, "stopped"): _S.STOPPED,
    (_S.READY, "died"): _S.STOPPED,
    (_S.STOPPED, "journal"): _S.STOPPED,
    (_S.STOPPED, "stopped"): _S.STOPPED,
    (_S.STOPPED, "died"): _S.STOPPED,
    (_S.CREATING, "removing"): _S.REMOVING,
    (_S.READY, "removing"): _S.REMOVING,
    (_S.STOPPED, "removing"): _S.REMOVING,
    (_S.REMOVING, "removing"): _S.REMOVING,
    (_S.REMOVING, "journal"): _S.REMOVING,
}

CONTAINER: Mapping[tuple[ContainerState, str], ContainerState] = {
    (_C.CREATING, "journal"): _C.CREATING,
    (_C.CREATING, "created"): _C.CREATED,
    (_C.CREATED, "journal"): _C.CREATED,
    (_C.CREATED, "starting"): _C.STARTING,
    (_C.STARTING, "started"): _C.RUNNING,
    (_C.STARTING, "start-failed"): _C.EXITED,
    (_C.STARTING, "exited"): _C.EXITED,
    (_C.RUNNING, "exited"): _C.EXITED,
    (_C.RUNNING, "journal"): _C.RUNNING,
    (_C.CREATED, "abandoned"): _C.EXITED,
    (_C.CREATING, "removing"): _C.REMOVING,
    (_C.CREATED, "removing"): _C.REMOVING,
    (_C.STARTING, "removing"): _C.REMOVING,
    (_C.RUNNING, "removing"): _C.REMOVING,
    (_C.EXITED, "removing"): _C.REMOVING,
    (_C.REMOVING, "removing"): _C.REMOVING,
}

FACTS = frozenset(("started", "start-failed", "exited", "abandoned", "stopped", "died", "removing"))
"""Events that have happened, or that may be repeated from their beginning: no full disk can undo them. The others are promises."""

State = TypeVar("State", SandboxState, ContainerState)


def follow(table: Mapping[tuple[State, str], State], what: str, state: State, event: str) -> State:
    """The state after ``event``. Raises IllegalTransition naming object, state, event and what would be allowed."""
    following = table.get((state, event))
    if following is None:
        allowed = sorted(name for (source, name) in table if source is state)
        raise IllegalTransition(f"{what} is {state}: {event!r} is not possible now (possible: {', '.join(allowed)})")
    return following


def require(container: Container, event: str) -> None:
    """Raises IllegalTransition, as ``follow``, when ``event`` is not possible for ``container`` now; nothing changes."""
    follow(CONTAINER, f"container {container.id}", container.state, event)
