"""JSON whose every field counts: one that is unknown, missing, given twice or of another type refuses the whole document. Pure.

For what decides on trust: signature policies and signed claims. Raises CorruptData with the path of the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.errors import CorruptData

Fields = Mapping[str, Any]


def load(data: bytes | str) -> Fields:
    """``data`` as a JSON object; nowhere in it may a field be given twice."""
    try:
        value = json.loads(data, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as exc:
        raise CorruptData(f"it is not JSON: {exc}") from exc
    return fields(value, "")


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CorruptData(f"{name!r} is given twice in one object")
        found[name] = value
    return found


def fields(value: object, where: str) -> Fields:
    """``value``, which must be an object."""
    if not isinstance(value, dict):
        raise CorruptData(f"{where or 'it'}: must be an object")
    return value


def only(found: Fields, where: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """Refuse an object with other fields than these, or without one that is required."""
    for name in found:
        if name not in required and name not in optional:
            raise CorruptData(f"{below(where, name)}: unknown field (known: {', '.join(sorted((*required, *optional)))})")
    for name in required:
        if name not in found:
            raise CorruptData(f"{below(where, name)}: missing")


def text(found: Fields, name: str, where: str) -> str:
    """A field that is a string and not empty."""
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise CorruptData(f"{below(where, name)}: must be a string that is not empty")
    return value


def texts(found: Fields, name: str, where: str) -> tuple[str, ...]:
    """A field that is an array of strings, none of them empty; nor is the array."""
    value = found.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise CorruptData(f"{below(where, name)}: must be an array of strings, with at least one")
    return tuple(value)


def below(where: str, name: str) -> str:
    """The path of the field ``name`` of what lies at ``where``."""
    plain = name.replace("-", "").replace("_", "").isalnum()
    return f"{where}.{name}" if where and plain else f"{where}[{json.dumps(name)}]" if where else name
