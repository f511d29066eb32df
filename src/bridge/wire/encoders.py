"""Writes and compiles, for one message class, a function that encodes it.

It does what betterproto2 does without looking anything up at run time. The function for a message inside another is
compiled when first called, so a server pays for the messages it meets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from betterproto2 import Message

from bridge.wire import wiretypes
from bridge.wire.source import Encode, Source, short_format, tag_bytes
from bridge.wire.wiretypes import FIXED_FORMATS, LENGTH, Field, Value


class _Encoder(Source):
    def __init__(self, encoder_of: Callable[[type[Any]], Encode]) -> None:
        super().__init__()
        self._encoder_of = encoder_of

    def payload(self, value: Value, name: str) -> str:
        """An expression for the bytes of ``name``, its tag and length excluded."""
        kind = value.kind
        if kind == "string":
            return f"{name}.encode()"
        if kind == "bytes":
            return name
        if kind == "message":
            assert value.cls is not None
            inner = f"{self.bind('cls', value.cls)}.from_wrapped({name})" if value.wrapped else name
            return f"{self.later('encode', value.cls, self._encoder_of)}({inner})"
        if kind in FIXED_FORMATS:
            return f"{self.bind('pack', struct.Struct(FIXED_FORMATS[kind]).pack)}({name})"
        if kind in ("sint32", "sint64"):
            return f"varint({name} * 2 if {name} >= 0 else -{name} * 2 - 1)"
        return f"(b'\\1' if {name} else b'\\0')" if kind == "bool" else f"varint({name})"

    def tagged(self, number: int, value: Value, name: str, add: str = "add") -> None:
        """Lines that add ``name`` as field ``number``, zero or not."""
        if value.wire_type == LENGTH:
            self(f"data = {self.payload(value, name)}")
            self.block_bytes(number, "data", add)
        else:
            self(f"{add}({tag_bytes(number, value)!r} + {self.payload(value, name)})")

    def block_bytes(self, number: int, name: str, add: str) -> None:
        """Lines that add the bytes ``name`` with tag and length; small ones in one step."""
        tag = tag_bytes(number, None)
        self(f"size = len({name})")
        self.block("if size < 128:", f"{add}(b'{short_format(tag)}' % (size, {name}))")
        self.block("else:", f"{add}({tag!r} + varint(size))", f"{add}({name})")

    def field(self, field: Field) -> None:
        self(f"value = message.{field.name}")
        self("if value is not None:" if field.presence or (field.value.kind == "message" and not field.repeated) else "if value:")
        self.depth += 1
        if field.key is not None:
            self.map_entries(field, field.key)
        elif field.repeated and field.value.packable:
            self(f"packed = b''.join([{self.payload(field.value, 'item')} for item in value])")
            self.block_bytes(field.number, "packed", "add")
        elif field.repeated:
            self("for item in value:")
            self.depth += 1
            self.tagged(field.number, field.value, "item")
            self.depth -= 1
        else:
            self.tagged(field.number, field.value, "value")
        self.depth -= 1

    def map_entries(self, field: Field, key: Value) -> None:
        """A map is a repeated message of key (1) and value (2), both always written."""
        self("for key, item in value.items():")
        self.depth += 1
        if key.kind == "string" and field.value.kind == "string":
            self("key = key.encode()", "item = item.encode()", "size = len(key)", "more = len(item)")
            entry = f"b'{short_format(tag_bytes(field.number, None)).removesuffix('%b')}\\n%c%b\\x12%c%b'"
            self.block("if size + more < 124:", f"add({entry} % (size + more + 4, size, key, more, item))", "continue")
            self("entry = b'\\n' + varint(size) + key + b'\\x12' + varint(more) + item")
        else:
            self("parts = []")
            self.tagged(1, key, "key", "parts.append")
            self.tagged(2, field.value, "item", "parts.append")
            self("entry = b''.join(parts)")
        self.block_bytes(field.number, "entry", "add")
        self.depth -= 1


def encoder(cls: type[Message], encoder_of: Callable[[type[Any]], Encode]) -> Encode:
    """``f(message) -> bytes`` for ``cls``; ``encoder_of`` gives the same for the messages inside."""
    source = _Encoder(encoder_of)
    source.lines.append("def encode(message):")
    fields = wiretypes.fields_of(cls)
    if not fields:
        source("return message._unknown_fields")
        return source.compiled("encode", cls)  # type: ignore[no-any-return]
    source("parts_ = []", "add = parts_.append")
    for field in fields:
        source.field(field)
    source.block("if message._unknown_fields:", "add(message._unknown_fields)")
    source("return b''.join(parts_)")
    return source.compiled("encode", cls)  # type: ignore[no-any-return]
