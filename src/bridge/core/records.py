"""Frozen dataclasses to JSON and back, for the database.

Covers what the model uses: nested dataclasses, tuples, mappings, string enums, None. Fields that a stored record lacks take
their default (an older version wrote it); unknown fields are ignored (a newer one did). A record that does not fit raises
CorruptData, and recovery sets it aside.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from bridge.errors import CorruptData

T = TypeVar("T")
Decoder = Callable[[Any], Any]


def dumps(record: object) -> str:
    """Compact JSON of a dataclass; fields that hold their default are left out."""
    return json.dumps(_plain(record), separators=(",", ":"))


def loads(kind: type[T], text: str) -> T:
    """The dataclass back. Raises CorruptData."""
    try:
        return typing.cast("T", _decoder(typing.cast("Any", kind))(json.loads(text)))
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise CorruptData(f"stored {kind.__name__} record is unreadable: {exc}") from exc


def _plain(value: object) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        out: dict[str, Any] = {}
        for name, default in _defaults(typing.cast("Any", type(value))):
            item = getattr(value, name)
            if item is not default and item != default:
                out[name] = _plain(item)
        return out
    raise TypeError(f"{type(value).__name__} can't be stored")


@cache
def _defaults(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    found = []
    for spec in dataclasses.fields(kind):
        default = spec.default
        if spec.default_factory is not dataclasses.MISSING:
            default = spec.default_factory()
        found.append((spec.name, default))
    return tuple(found)


@cache
def _decoder(kind: Any) -> Decoder:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [arg for arg in args if arg is not type(None)]
        decode = _decoder(inner)
        return lambda value: None if value is None else decode(value)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, tuple)):
        return _tuple_decoder(args)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        each = _decoder(args[0])
        return lambda value: tuple(each(item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        each = _decoder(args[1])
        return lambda value: {str(key): each(item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(typing.cast("type[Any]", kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind
    return _same


def _tuple_decoder(args: tuple[Any, ...]) -> Decoder:
    if len(args) == 2 and args[1] is Ellipsis:
        each = _decoder(args[0])
        return lambda value: tuple(each(item) for item in value)
    parts = [_decoder(arg) for arg in args]
    return lambda value: tuple(part(item) for part, item in zip(parts, value, strict=True))


def _dataclass_decoder(kind: type[Any]) -> Decoder:
    hints = typing.get_type_hints(kind)
    decoders = {spec.name: _decoder(hints[spec.name]) for spec in dataclasses.fields(kind)}

    def decode(value: Any) -> Any:
        return kind(**{name: decoders[name](item) for name, item in value.items() if name in decoders})

    return decode


def _same(value: Any) -> Any:
    return value
