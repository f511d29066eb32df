"""What a generated message says of its fields, read from betterproto2's metadata, and the varint and skipping routines.

Everything that ``codegen.py`` needs to know of betterproto2 and of the wire format's primitives is here; it decides
nothing. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable
from typing import Any

import betterproto2
from betterproto2 import Message

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5

VARINT_KINDS = frozenset(("enum", "bool", "int32", "int64", "uint32", "uint64", "sint32", "sint64"))
FIXED_FORMATS = {"double": "<d", "float": "<f", "fixed32": "<I", "fixed64": "<Q", "sfixed32": "<i", "sfixed64": "<q"}
_WIDTH_8 = frozenset(("double", "fixed64", "sfixed64"))


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """The type of one value: ``kind`` is protobuf's name of it, ``cls`` the class of a message or an enum.

    ``wrapped``: the attribute holds a plain Python value that ``cls`` wraps (google.protobuf.StringValue and its like).
    """

    kind: str
    cls: type[Any] | None = None
    wrapped: bool = False

    @property
    def wire_type(self) -> int:
        """The low three bits of a tag in front of such a value."""
        if self.kind in VARINT_KINDS:
            return VARINT
        if self.kind in FIXED_FORMATS:
            return FIXED64 if self.kind in _WIDTH_8 else FIXED32
        return LENGTH

    @property
    def packable(self) -> bool:
        """Whether a repeated field of these is written as one packed block."""
        return self.wire_type != LENGTH


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: ``key`` is set for a map, whose values are then ``value``.

    ``presence``: None means absent and the zero value is written; ``group`` names the oneof the field belongs to.
    """

    name: str
    number: int
    value: Value
    key: Value | None
    repeated: bool
    presence: bool
    group: str | None


def fields_of(cls: type[Message]) -> list[Field]:
    """The fields of ``cls`` in the order of their numbers, which is the order in which they are written."""
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    found = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        meta = betterproto2.FieldMetadata.get(field)
        key = None
        if meta.map_meta is not None:
            key = Value(meta.map_meta[0].proto_type)
            value = _value(meta.map_meta[1], typing.get_args(hints[field.name])[1])
        else:
            hint = hints[field.name]
            value = _value(meta, typing.get_args(hint)[0] if meta.repeated or meta.optional or meta.group else hint)
        found.append(Field(field.name, meta.number, value, key, bool(meta.repeated), bool(meta.optional or meta.group), meta.group))
    return sorted(found, key=lambda field: field.number)


def _value(meta: betterproto2.FieldMetadata, hint: type[Any]) -> Value:
    if meta.unwrap is not None:
        return Value(meta.proto_type, meta.unwrap(), wrapped=True)
    return Value(meta.proto_type, hint if meta.proto_type in ("message", "enum") else None)


class Members(dict[int, Any]):
    """Enum members by number; an unknown number becomes an unnamed member and is not remembered, so none can pile up."""

    def __init__(self, cls: type[Any]) -> None:
        super().__init__({int(member): member for member in cls})
        self._cls = cls

    def __missing__(self, number: int) -> Any:
        return self._cls(number)


_members: dict[type[Any] | None, Members] = {}


def members_of(cls: type[Any] | None) -> Members:
    """The members of an enum class, one table for all who need it."""
    found = _members.get(cls)
    if found is None:
        assert cls is not None, "an enum field has a class"
        found = _members[cls] = Members(cls)
    return found


def varint(value: int) -> bytes:
    """``value`` as a varint; negative numbers take ten bytes. Raises ValueError outside 64 bits."""
    if 0 <= value < 0x80:
        return value.to_bytes(1, "little")
    if 0 <= value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{value} does not fit in 64 bits")
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(buf: bytes, pos: int) -> tuple[int, int]:
    """The varint at ``pos`` modulo 2**64 and the position after it. Raises IndexError or ValueError on bad input."""
    result = shift = 0
    while True:
        byte = buf[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, pos
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than ten bytes")


def reader(bits: int, *, signed: bool) -> Callable[[bytes, int], tuple[int, int]]:
    """``read_varint`` cut to ``bits``, as two's complement when ``signed``."""
    mask, limit = (1 << bits) - 1, 1 << (bits - 1)

    def read(buf: bytes, pos: int) -> tuple[int, int]:
        value, pos = read_varint(buf, pos)
        value &= mask
        return (value - mask - 1 if signed and value >= limit else value), pos

    return read


def skip(buf: bytes, pos: int, tag: int) -> int:
    """The position after the field whose ``tag`` was just read. Raises IndexError or ValueError on bad input."""
    wire_type = tag & 7
    if tag >> 3 == 0 or wire_type in (END_GROUP, 6, 7):
        raise ValueError(f"{tag} is not the tag of a field")
    if wire_type == VARINT:
        return read_varint(buf, pos)[1]
    if wire_type == FIXED64:
        return pos + 8
    if wire_type == FIXED32:
        return pos + 4
    if wire_type == LENGTH:
        size, pos = read_varint(buf, pos)
        return pos + size
    while True:
        inner, pos = read_varint(buf, pos)
        if inner & 7 == END_GROUP:
            if inner >> 3 != tag >> 3:
                raise ValueError("a group ends that did not begin")
            return pos
        pos = skip(buf, pos, inner)
