"""Encoded list items, kept while their object does not change, so that a list is a join (design §9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from betterproto2 import Message

from bridge.api import encoding


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


class _Versioned(_Identified, Protocol):
    @property
    def revision(self) -> int: ...


E = TypeVar("E", bound=_Identified)


def revision(entity: _Versioned) -> int:
    """The version of an entity of core."""
    return entity.revision


class Pieces(Generic[E]):
    """Encodings of list items as field 1 of a list response, by id and version. Dropped with the objects they stand for."""

    def __init__(self, convert: Callable[[E], Message], version: Callable[[E], object]) -> None:
        self._convert = convert
        self._version = version
        self._kept: dict[str, tuple[object, bytes]] = {}

    def of(self, entities: Iterable[E], alive: int) -> Iterator[bytes]:
        """One piece an entity, encoded when it is asked for; ``alive`` is how many objects exist, past which old pieces are swept."""
        if len(self._kept) > 2 * alive + 64:
            self._kept.clear()
        return map(self._piece, entities)

    def _piece(self, entity: E) -> bytes:
        kept, version = self._kept.get(entity.id), self._version(entity)
        if kept is not None and kept[0] == version:
            return kept[1]
        data = encoding.piece(1, self._convert(entity))
        self._kept[entity.id] = (version, data)
        return data
