"""Times that go on the record: the wall clock's, but in the order of what happened.

A kubelet takes the newest sandbox of a pod, and the newest container of each name, for the current one. A clock that is set back must
not turn that round. Deadlines have nothing to do with this: they are all on the loop's monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from bridge.core.entities import Sandbox
from bridge.core.store import Store


def after(earlier: Iterable[int]) -> int:
    """Now (Unix, ns), but later than each of ``earlier``."""
    return max(time.time_ns(), 1 + max(earlier, default=0))


def of_sandbox(store: Store, uid: str) -> int:
    """When a sandbox of pod ``uid`` is made that succeeds all there are."""
    return after(made for sandbox in store.sandboxes.values() if sandbox.config.metadata.uid == uid for made in _times(store, sandbox))


def of_container(store: Store, sandbox: Sandbox) -> int:
    """When the next container of ``sandbox`` is made."""
    return after(_times(store, sandbox))


def of_start(store: Store, ident: str) -> int:
    """When container ``ident`` is started, or fails to be."""
    return after([store.container(ident).created_at])


def _times(store: Store, sandbox: Sandbox) -> Iterable[int]:
    yield sandbox.created_at
    for member in store.members(sandbox.id):
        yield member.created_at
