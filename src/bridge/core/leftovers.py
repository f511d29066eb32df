"""Pods and containers that are to go and whose remains would not: kept on record, tried again until nothing is left.

An undo step of a failed creation may fail itself, and so may a removal that nobody will ask for again (a kubelet no longer sees the
pod). Forgetting the record then would leave the remains to nobody. Here the record stays, in state removing and with the reason: no
list shows it, its name is free for the kubelet's next try, and the removal is repeated with growing pauses and by the next server.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import anyio

from bridge import log
from bridge.aio import describe, run_all
from bridge.core.detach import Detacher
from bridge.core.entities import Container, Sandbox
from bridge.core.store import Store
from bridge.errors import BridgeError

_logger = log.get("core.leftovers")
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0

Finish = Callable[[str], Awaitable[None]]
"""One try at removing all of a pod or container by its id; absent is success. Raises BridgeError."""


class Leftovers:
    """Who has remains, and the task that tries again. ``tend`` is run by the server's supervisor."""

    def __init__(self, store: Store, detacher: Detacher) -> None:
        self._store = store
        self._detacher = detacher
        self._waiting: list[str] = []
        self._tended: set[str] = set()
        self._some = anyio.Event()
        self._finish: Finish | None = None

    def __len__(self) -> int:
        return sum(map(self._there, (*self._tended, *self._waiting)))

    async def keep(self, ident: str, why: str) -> None:
        """Keep the record of what could not be removed for the reason ``why``, free its name, and try again later."""
        entity = self._store.sandboxes.get(ident) or self._store.containers.get(ident)
        if entity is None:
            return
        why = why or "its removal failed"
        if entity.unremoved != why:
            _logger.error("%s could not be removed entirely, which is tried again: %s", _words(entity), why)
        if isinstance(entity, Container):
            await self._store.apply_container(ident, "removing", unremoved=why)
        else:
            await self._keep_sandbox(entity, why)
        if ident not in self._tended and ident not in self._waiting:
            self._waiting.append(ident)
            self._some.set()

    async def _keep_sandbox(self, sandbox: Sandbox, why: str) -> None:
        attachment = sandbox.attachment
        if attachment is not None:  # else its host ports would stay claimed until the rest is gone
            try:
                await self._detacher.owe(sandbox.id, attachment)
                attachment = None
            except BridgeError as exc:
                _logger.warning("%s: its CNI DEL is not written down yet: %s", _words(sandbox), exc)
        await self._store.apply_sandbox(sandbox.id, "removing", unremoved=why, attachment=attachment, pid=0)

    async def tend(self, finish: Finish) -> None:
        """Try again, each on its own with growing pauses, for ever."""
        self._finish = finish
        async with anyio.create_task_group() as group:
            while True:
                await self._some.wait()
                self._some = anyio.Event()
                while self._waiting:
                    ident = self._waiting.pop()
                    self._tended.add(ident)
                    group.start_soon(self._until_gone, ident, name=f"leftovers {ident}")

    async def settle(self) -> Sequence[str]:
        """Try each once, now. Returns in words what is gone by that."""
        gone: list[str] = []

        async def once(ident: str) -> None:
            entity = self._store.sandboxes.get(ident) or self._store.containers.get(ident)
            if entity is not None and await self._try(ident):
                gone.append(_words(entity))

        await run_all([lambda ident=ident: once(ident) for ident in (*self._tended, *self._waiting)])  # type: ignore[misc]
        return gone

    async def _until_gone(self, ident: str) -> None:
        pause = _FIRST_PAUSE
        while self._there(ident):
            await anyio.sleep(pause)
            pause = min(pause * math.e, _LONGEST_PAUSE)
            if await self._try(ident):
                break
            _logger.warning("%s: the next try is in %.0f s", ident[:13], pause)
        self._tended.discard(ident)

    def _there(self, ident: str) -> bool:
        return ident in self._store.sandboxes or ident in self._store.containers

    async def _try(self, ident: str) -> bool:
        """Whether nothing is left of it. Never raises: whatever goes wrong is a reason to try again."""
        if self._finish is None:
            return False
        try:
            await self._finish(ident)
        except Exception as exc:  # noqa: BLE001 - a fault of a plugin must not end the tries
            await self.keep(ident, exc.message if isinstance(exc, BridgeError) else describe(exc))
            return False
        if self._there(ident):
            return False
        _logger.info("%s: nothing is left of it", ident[:13])
        return True


def _words(entity: Sandbox | Container) -> str:
    name = entity.config.metadata.name
    if isinstance(entity, Container):
        return f"container {name} ({entity.id[:13]})"
    return f"pod {entity.config.metadata.namespace}/{name} ({entity.id[:13]})"
