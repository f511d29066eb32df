"""Writes and compiles, for one message class, a function that decodes it.

Unknown fields and unknown enum numbers are kept, a known number with another wire type counts as unknown, packed and
unpacked repeated fields are both understood, and a message that occurs twice is merged, all as protobuf asks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from betterproto2 import Message

from bridge.wire import wiretypes
from bridge.wire.source import Decode, Encode, Source, tag_number
from bridge.wire.wiretypes import FIXED64, FIXED_FORMATS, LENGTH, Field, Value

_READERS = {"int32": "i32", "int64": "i64", "uint32": "u32", "sint32": "u32", "enum": "i32"}  # all others: u64
_ZEROS = {"string": "''", "bytes": "b''", "bool": "False", "float": "0.0", "double": "0.0", "message": "None"}


class _Decoder(Source):
    def __init__(self, decoder_of: Callable[[type[Any]], Decode], encoder_of: Callable[[type[Any]], Encode]) -> None:
        super().__init__()
        self._decoder_of = decoder_of
        self._encoder_of = encoder_of

    def number(self, reader: str) -> None:
        """Lines that read a varint into ``n``; most are one byte."""
        self("n = buf[pos]")
        self.block("if n < 128:", "pos += 1")
        self.block("else:", f"n, pos = {reader}(buf, pos)")

    def read(self, value: Value) -> str:
        """Lines that read one value; returns an expression for it, to be used once. For LENGTH ones ``pos`` is then past it."""
        if value.wire_type == LENGTH:
            self.number("u64")
            self("start = pos", "pos += n")
            return self.from_bytes(value)
        if value.kind in FIXED_FORMATS:
            width = 8 if value.wire_type == FIXED64 else 4
            self(f"pos += {width}")
            return f"{self.bind('unpack', struct.Struct(FIXED_FORMATS[value.kind]).unpack_from)}(buf, pos - {width})[0]"
        self.number(_READERS.get(value.kind, "u64"))
        if value.kind == "enum":
            return f"{self.bind('members', wiretypes.members_of(value.cls))}[n]"
        if value.kind in ("sint32", "sint64"):
            return "(n >> 1) ^ -(n & 1)"
        return "n != 0" if value.kind == "bool" else "n"

    def from_bytes(self, value: Value) -> str:
        if value.kind == "string":
            return "buf[start:pos].decode()"
        if value.kind == "bytes":
            return "buf[start:pos]"
        assert value.cls is not None
        inner = f"{self.later('decode', value.cls, self._decoder_of)}(buf, start, pos)"
        return f"{inner}.to_wrapped()" if value.wrapped else inner

    def field(self, field: Field, group: list[str]) -> None:
        name = f"f{field.number}"
        if field.key is not None:
            self.map_entry(field, field.key, name)
        elif field.repeated:
            self(f"{name}.append({self.read(field.value)})")
        elif field.value.kind == "message" and not field.value.wrapped:
            self.message(field, name)
        else:
            self(f"{name} = {self.read(field.value)}")
        for other in group:
            self(f"{other} = None")

    def message(self, field: Field, name: str) -> None:
        """A message that occurs twice is the merger of both, which is what the joined encodings decode to."""
        fresh = self.read(field.value)
        cls = field.value.cls
        assert cls is not None
        self.block(f"if {name} is None:", f"{name} = {fresh}")
        encode, decode = self.later("encode", cls, self._encoder_of), self.later("decode", cls, self._decoder_of)
        self.block("else:", f"both = {encode}({name}) + buf[start:pos]", f"{name} = {decode}(both, 0, len(both))")

    def map_entry(self, field: Field, key: Value, name: str) -> None:
        self.number("u64")
        zero = _zero(self, field.value)
        if field.value.kind == "message" and field.value.cls is not None and not field.value.wrapped:
            zero = f"{self.later('decode', field.value.cls, self._decoder_of)}(b'', 0, 0)"
        self("stop = pos + n", f"key, item = {_zero(self, key)}, {zero}", "while pos < stop:")
        self.depth += 1
        self("tag, pos = u64(buf, pos)", f"if tag == {tag_number(1, key)}:")
        self.depth += 1
        self(f"key = {self.read(key)}")
        self.depth -= 1
        self(f"elif tag == {tag_number(2, field.value)}:")
        self.depth += 1
        self(f"item = {self.read(field.value)}")
        self.depth -= 1
        self.block("else:", "pos = skip(buf, pos, tag)")
        self.depth -= 1
        self.block("if pos != stop:", "raise ValueError('a map entry runs over its end')")
        self(f"{name}[key] = item")

    def packed(self, field: Field) -> None:
        self.number("u64")
        self("stop = pos + n", "while pos < stop:")
        self.depth += 1
        self(f"f{field.number}.append({self.read(field.value)})")
        self.depth -= 1
        self.block("if pos != stop:", "raise ValueError('a packed field runs over its end')")


def decoder(cls: type[Message], decoder_of: Callable[[type[Any]], Decode], encoder_of: Callable[[type[Any]], Encode]) -> Decode:
    """``f(buf, pos, end) -> message`` for ``cls``. It raises IndexError, ValueError or struct.error on malformed input."""
    source = _Decoder(decoder_of, encoder_of)
    source.lines.append("def decode(buf, pos, end):")
    fields = wiretypes.fields_of(cls)
    for field in fields:
        empty = "{}" if field.key else "[]" if field.repeated else "None" if field.presence else _zero(source, field.value)
        source(f"f{field.number} = {empty}")
    source("unknown = b''", "while pos < end:")
    source.depth += 1
    source("begin = pos")
    source.number("u64")
    source("tag = n", "if tag == 0:")
    source("    raise ValueError('a field has number 0')")
    for field in fields:
        number = tag_number(field.number, Value("bytes") if field.key else field.value)
        group = [f"f{other.number}" for other in fields if field.group and other.group == field.group and other is not field]
        source(f"elif tag == {number}:")
        source.depth += 1
        source.field(field, group)
        source.depth -= 1
        if field.repeated and field.value.packable:
            source(f"elif tag == {tag_number(field.number, None)}:")
            source.depth += 1
            source.packed(field)
            source.depth -= 1
    source.block("else:", "pos = skip(buf, pos, tag)", "unknown += buf[begin:pos]")
    source.depth -= 1
    source.block("if pos != end:", "raise ValueError('a field runs over the end of its message')")
    source(f"message = new({source.bind('cls', cls)})")
    source(*(f"message.{field.name} = f{field.number}" for field in fields))
    source("message._unknown_fields = unknown", "return message")
    return source.compiled("decode", cls)  # type: ignore[no-any-return]


def _zero(source: Source, value: Value) -> str:
    if value.kind == "enum":
        return f"{source.bind('members', wiretypes.members_of(value.cls))}[0]"
    return _ZEROS.get(value.kind, "0")
