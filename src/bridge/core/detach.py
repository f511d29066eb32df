"""Taking pods off the network so that it always ends (design promise 5).

A DEL that fails is owed: it is journaled and tried again in the background with growing pauses, and after a restart. The
pod's own removal goes on meanwhile (cri-o#4084: a broken plugin made pods undeletable).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from bridge import log
from bridge.aio import Supervisor, describe
from bridge.core.store import Store
from bridge.errors import BridgeError
from bridge.ports.network import Attachment, Network

_logger = log.get("core.detach")
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0


def to_record(attachment: Attachment) -> dict[str, Any]:
    """An attachment as stored JSON."""
    return {"network": attachment.network, "data": dict(attachment.data)}


def from_record(record: Mapping[str, Any]) -> Attachment:
    """The attachment back."""
    return Attachment(str(record["network"]), record["data"])


class Detacher:
    """Runs CNI DEL now, or later when it fails now."""

    def __init__(self, store: Store, network: Network, supervisor: Supervisor) -> None:
        self._store = store
        self._network = network
        self._supervisor = supervisor

    async def detach(self, sandbox_id: str, record: Mapping[str, Any]) -> None:
        """DEL; on failure owe it. Always returns with the attachment gone or journaled as owed."""
        try:
            await self._network.delete(from_record(record))
        except BridgeError as exc:
            _logger.warning("CNI DEL of pod %s failed, will be retried: %s", sandbox_id, exc)
            await self.owe(sandbox_id, record)

    async def owe(self, sandbox_id: str, record: Mapping[str, Any]) -> None:
        """Write the DEL down and leave it to the background. Raises HostError when the disk takes nothing."""
        await self._store.owe_detachment(sandbox_id, record)
        self.schedule(sandbox_id)

    def schedule(self, sandbox_id: str) -> None:
        """Retry an owed DEL in the background until it succeeds."""
        self._supervisor.spawn(f"cni del {sandbox_id}", lambda: self._retry(sandbox_id))

    async def _retry(self, sandbox_id: str) -> None:
        pause = _FIRST_PAUSE
        while sandbox_id in self._store.detachments:
            await anyio.sleep(pause)
            pause = min(pause * math.e, _LONGEST_PAUSE)
            if not await self._paid(sandbox_id):
                _logger.warning("the next DEL of pod %s is in %.0f s", sandbox_id, pause)

    async def settle(self) -> Sequence[str]:
        """Try every owed DEL once, now. Returns in words what is off its network by that."""
        return [f"network attachment of pod {ident}" for ident in tuple(self._store.detachments) if await self._paid(ident)]

    async def _paid(self, sandbox_id: str) -> bool:
        record = self._store.detachments.get(sandbox_id)
        if record is None:
            return True
        try:
            await self._network.delete(from_record(record))
            await self._store.settle_detachment(sandbox_id)
        except BridgeError as exc:
            _logger.warning("CNI DEL of pod %s failed again: %s", sandbox_id, describe(exc))
            return False
        return True
