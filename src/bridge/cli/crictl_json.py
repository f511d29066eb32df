"""crictl's files for pods and containers, JSON with the names of the CRI's fields, as messages. Pure.

Stricter than crictl, which takes what it doesn't know for nothing: an unknown name or a wrong type is refused with its place.
Source: the JSON tags of the CRI's Go types are its protobuf names; enums are numbers, here their names too; bytes are text.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bridge.errors import InvalidRequest

T = TypeVar("T")


def message(kind: type[T], value: object, at: str) -> T:
    """``value``, parsed JSON, as a message of ``kind``. Raises InvalidRequest with the place below ``at``."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"must be an object, not {_named(value)}", field=at)
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(typing.cast("Any", kind)) if not field.name.startswith("_")}
    given = {}
    for name, item in value.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
            raise InvalidRequest(f"no such field; {hint}", field=f"{at}.{name}")
        if item is not None:
            given[name] = _value(hints[name], item, f"{at}.{name}")
    return kind(**given)


def _value(hint: Any, value: object, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = [each for each in arguments if each is not type(None)]
        return _value(hint, value, at)
    if origin is list:
        if not isinstance(value, list):
            raise InvalidRequest(f"must be a list, not {_named(value)}", field=at)
        return [_value(arguments[0], item, f"{at}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise InvalidRequest(f"must be an object, not {_named(value)}", field=at)
        return {key: _value(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return message(typing.cast("type[Any]", hint), value, at)
    return _plain(hint, value, at)


def _plain(hint: Any, value: object, at: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        known = {each.name: each for each in hint} | {each.value: each for each in hint}
        if isinstance(value, int | str) and not isinstance(value, bool) and value in known:
            return known[value]
        raise InvalidRequest(f"{value!r} is not one of {', '.join(f'{each.name} ({each.value})' for each in hint)}", field=at)
    if hint is bytes and isinstance(value, str):
        return value.encode()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InvalidRequest(f"must be {_WORDS.get(hint, hint.__name__)}, not {_named(value)}", field=at)
    return value


_WORDS = {str: "text", bytes: "text", int: "a whole number", bool: "true or false", float: "a number"}


def _named(value: object) -> str:
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else repr(value)
