"""The shapes of values in a CDI spec. Each check takes the value and where it is, and gives it back or raises SpecFault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], Any]


class SpecFault(Exception):
    """What is wrong and where, in words."""


def fields(value: Any, where: str, known: Mapping[str, Check], *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with these fields and no others; null counts as absent."""
    if not isinstance(value, dict):
        raise SpecFault(f"{where or 'it'}: must be an object")
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in known:
            raise SpecFault(f"{prefix}{key}: is not known")
    found = {key: known[key](item, prefix + key) for key, item in value.items() if item is not None}
    for key in required:
        if key not in found:
            raise SpecFault(f"{prefix}{key}: is missing")
    return found


def listed(check: Check) -> Check:
    """The check for a list of what ``check`` takes."""

    def each(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise SpecFault(f"{where}: must be a list")
        return [check(item, f"{where}[{index}]") for index, item in enumerate(value)]

    return each


def text(value: Any, where: str) -> str:
    """A string; a whole number is taken for one, as in ``name: 0`` of a YAML file, which the reference implementation takes too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SpecFault(f"{where}: must be a string")
    return value


def texts(value: Any, where: str) -> list[str]:
    """A list of strings."""
    return list(listed(text)(value, where))


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise SpecFault(f"{where}: must be true or false")
    return value


def integer(value: Any, where: str, *, least: int, most: int) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SpecFault(f"{where}: must be a whole number from {least} to {most}")
    return value
