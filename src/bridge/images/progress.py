"""How far the running pulls are: which layers each waits for, and how many of their bytes have come. For people; nothing depends on it.

A layer that several pulls want is fetched once, so bytes are counted by layer and pulls only point at layers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class LayerState(StrEnum):
    """Where a layer of a running pull is."""

    PRESENT = "present"
    """It was here before the pull."""
    WAITING = "waiting"
    """For its turn among all pulls' layers."""
    DOWNLOADING = "downloading"
    """It is unpacked as it comes."""
    UNPACKING = "unpacking"
    """All of it has come."""
    WRITING = "writing"
    """Into an archive: only of exports."""
    CHECKING = "checking"
    """Against the index: only of checks."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """One layer: the digest of its blob, how many compressed bytes that has, and how many have come."""

    digest: str
    size: int
    received: int
    state: LayerState


@dataclass(frozen=True, slots=True)
class PullProgress:
    """One running pull. ``layers`` is empty while the registry is still asked what the image is made of."""

    reference: str
    started_ns: int
    layers: Sequence[LayerProgress] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer of a pull: its chain id, the digest and the size of its blob."""

    chain_id: str
    digest: str
    size: int


class Pull:
    """A running pull, while its layers are not known and then while they are fetched."""

    def __init__(self, reference: str, has: Callable[[str], bool]) -> None:
        self.reference = reference
        self.started_ns = time.time_ns()
        self.layers: Sequence[Wanted] = ()
        self.present: frozenset[str] = frozenset()
        self._has = has

    def announce(self, layers: Sequence[Wanted]) -> None:
        """Say what the image is made of."""
        self.present = frozenset(layer.chain_id for layer in layers if self._has(layer.chain_id))
        self.layers = layers


class Watcher(Protocol):
    """Told of pulls and imports as they end, for metrics. ``reference`` is an image's, or an archive's path. Must not wait or raise."""

    def pulled(self, reference: str, seconds: float, layers: int, *, failed: bool) -> None:
        """It has ended; ``layers`` are those that were not here before it."""

    def received(self, reference: str, size: int) -> None:
        """A layer's transfer has ended, after ``size`` bytes."""


class Tracer(Protocol):
    """Told of pulls and imports while they run, and of their steps, each inside what it is a part of. Must not wait or raise."""

    def step(self, name: str, image: str = "", layer: str = "") -> AbstractContextManager[None]:
        """The step ``name`` runs in the block, which stays in one task; ``image`` a reference or an archive's path, ``layer`` a digest."""


class Board:
    """The running pulls of one store. ``has`` tells whether a layer is complete, by its chain id."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        self._has = has
        self._pulls: list[Pull] = []
        self._received: dict[str, int] = {}
        self.watcher: Watcher | None = None
        self.tracer: Tracer | None = None

    def step(self, name: str, image: str = "", layer: str = "") -> AbstractContextManager[None]:
        """See Tracer; nothing without one."""
        return nullcontext() if self.tracer is None else self.tracer.step(name, image, layer)

    @contextmanager
    def pull(self, reference: str) -> Iterator[Pull]:
        """A pull that is shown while the block runs."""
        made = Pull(reference, self._has)
        self._pulls.append(made)
        began = time.monotonic()
        try:
            with self.step("import" if reference.startswith("/") else "pull", reference):
                yield made
        except Exception:
            self._ended(made, began, failed=True)
            raise
        else:
            self._ended(made, began, failed=False)
        finally:
            self._pulls.remove(made)

    def _ended(self, pull: Pull, began: float, *, failed: bool) -> None:
        if self.watcher is not None:
            self.watcher.pulled(pull.reference, time.monotonic() - began, len(pull.layers) - len(pull.present), failed=failed)

    async def counted(self, chain_id: str, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """``chunks``, counted for ``chain_id`` from nothing on. There is at most one such transfer at a time."""
        self._received[chain_id] = 0
        async with aclosing(chunks):
            async for chunk in chunks:
                self._received[chain_id] += len(chunk)
                yield chunk

    def landed(self, chain_id: str) -> None:
        """The layer's transfer and unpacking are over, well or badly."""
        size = self._received.pop(chain_id, 0)
        if self.watcher is not None:
            pulls = (pull.reference for pull in self._pulls if any(layer.chain_id == chain_id for layer in pull.layers))
            self.watcher.received(next(pulls, ""), size)

    def show(self) -> Sequence[PullProgress]:
        """The running pulls, the oldest first."""
        return [
            PullProgress(pull.reference, pull.started_ns, tuple(self._layer(pull, layer) for layer in pull.layers)) for pull in self._pulls
        ]

    def _layer(self, pull: Pull, layer: Wanted) -> LayerProgress:
        received = self._received.get(layer.chain_id)
        if layer.chain_id in pull.present:
            return LayerProgress(layer.digest, layer.size, layer.size, LayerState.PRESENT)
        if received is not None:
            state = LayerState.UNPACKING if received >= layer.size else LayerState.DOWNLOADING
            return LayerProgress(layer.digest, layer.size, received, state)
        if self._has(layer.chain_id):
            return LayerProgress(layer.digest, layer.size, layer.size, LayerState.DONE)
        return LayerProgress(layer.digest, layer.size, 0, LayerState.WAITING)
