"""Encoded list items, kept while their object does not change, so that a list is a join (design §9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from betterproto2 import Message

from bridge.api import encoding


class _Versioned(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def revision(self) -> int: ...


E = TypeVar("E", bound=_Versioned)


class Pieces(Generic[E]):
    """Encodings of list items as field 1 of a list response, by id and revision. Dropped with the objects they stand for."""

    def __init__(self, convert: Callable[[E], Message]) -> None:
        self._convert = convert
        self._kept: dict[str, tuple[int, bytes]] = {}

    def of(self, entities: Iterable[E], alive: int) -> list[bytes]:
        """One piece an entity; ``alive`` is how many objects exist, past which old pieces are swept."""
        found = [self._piece(entity) for entity in entities]
        if len(self._kept) > 2 * alive + 64:
            self._kept.clear()
        return found

    def _piece(self, entity: E) -> bytes:
        kept = self._kept.get(entity.id)
        if kept is not None and kept[0] == entity.revision:
            return kept[1]
        data = encoding.piece(1, self._convert(entity))
        self._kept[entity.id] = (entity.revision, data)
        return data
