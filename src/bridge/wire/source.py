"""Source text under construction, for ``encoders.py`` and ``decoders.py``: lines, names, tags.

Generated code holds no data from any message: names and numbers come from our own generated classes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from betterproto2 import Message

from bridge.wire import wiretypes
from bridge.wire.wiretypes import LENGTH, Value

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes, int, int], Any]


class Source:
    """Lines of source with their names: ``bind`` gives a value a name in the generated function's globals."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self._later: dict[tuple[str, type[Any]], str] = {}
        self.names: dict[str, Any] = {
            "varint": wiretypes.varint,
            "skip": wiretypes.skip,
            "new": object.__new__,
            "i32": wiretypes.reader(32, signed=True),
            "i64": wiretypes.reader(64, signed=True),
            "u32": wiretypes.reader(32, signed=False),
            "u64": wiretypes.read_varint,
        }

    def __call__(self, *lines: str) -> None:
        self.lines.extend("    " * self.depth + line for line in lines)

    def block(self, head: str, *lines: str) -> None:
        """``head`` and, one step deeper, ``lines``."""
        self(head)
        self.depth += 1
        self(*lines)
        self.depth -= 1

    def bind(self, prefix: str, value: Any) -> str:
        for name, known in self.names.items():
            if known is value:
                return name
        name = f"{prefix}{len(self.names)}"
        self.names[name] = value
        return name

    def compiled(self, kind: str, cls: type[Message]) -> Any:
        source = "\n".join(self.lines)
        exec(compile(source, f"<{kind} {cls.__name__}>", "exec"), self.names)  # noqa: S102 - our own source, see above
        return self.names[kind]

    def later(self, prefix: str, cls: type[Any], build: Callable[[type[Any]], Any]) -> str:
        """The name of ``build(cls)``, built at its first call; so recursive types work, and unused ones cost nothing."""
        name = self._later.get((prefix, cls))
        if name is None:
            name = self._later[prefix, cls] = f"{prefix}_{len(self._later)}_{cls.__name__}"

            def first(*args: Any) -> Any:
                function = self.names[name] = build(cls)
                return function(*args)

            self.names[name] = first
        return name


def tag_number(number: int, value: Value | None) -> int:
    """The tag of a field; ``value`` None: of any block with a length."""
    return number << 3 | (LENGTH if value is None else value.wire_type)


def tag_bytes(number: int, value: Value | None) -> bytes:
    return wiretypes.varint(tag_number(number, value))


def short_format(tag: bytes) -> str:
    """The inside of a bytes literal: a %-format for tag, one length byte and content."""
    return "".join("%%" if byte == 0x25 else f"\\x{byte:02x}" for byte in tag) + "%c%b"
