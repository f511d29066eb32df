"""Every kind of protobuf field that CRI does not use today but may tomorrow, against Google's protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from betterproto2 import field

from bridge.api import encoding

from .conftest import compile_set

SCALARS = (
    "int32 int64 uint32 uint64 sint32 sint64 fixed32 fixed64 sfixed32 sfixed64 float double bool string bytes".split()  # noqa: SIM905
)
PROTO = "\n".join(
    [
        'syntax = "proto3"; package kinds; enum Colour { RED = 0; GREEN = 1; }',
        "message Wrapped { string value = 1; }",
        "message Node { string name = 1; repeated Node children = 2; }",
        "message Everything {",
        *(f"  {kind} single_{kind} = {number};" for number, kind in enumerate(SCALARS, 1)),
        *(f"  repeated {kind} many_{kind} = {number};" for number, kind in enumerate(SCALARS, 101)),
        *(f"  optional {kind} maybe_{kind} = {number};" for number, kind in enumerate(SCALARS, 201)),
        *(f"  map<int32, {kind}> mapped_{kind} = {number};" for number, kind in enumerate(SCALARS, 5001)),
        "  map<string, Node> nodes = 301; map<bool, Colour> colours = 302; repeated Colour palette = 303; Node node = 304;",
        "  Wrapped wrapped = 305; repeated Wrapped wraps = 306;",
        "  oneof choice { string text = 401; int64 number = 402; Node tree = 403; }",
        "}",
    ]
)


class Colour(betterproto2.Enum):
    RED = 0
    GREEN = 1


@dataclass(eq=False, repr=False)
class Wrapped(betterproto2.Message):
    """Like google.protobuf.StringValue: the attribute holds the plain string."""

    value: str = field(1, "string")

    @staticmethod
    def from_wrapped(value: str) -> Wrapped:
        return Wrapped(value=value)

    def to_wrapped(self) -> str:
        return self.value


@dataclass(eq=False, repr=False)
class Node(betterproto2.Message):
    name: str = field(1, "string")
    children: list[Node] = field(2, "message", repeated=True)  # noqa: RUF009 - this is betterproto2's field


def _everything() -> type[betterproto2.Message]:
    python = {"float": float, "double": float, "bool": bool, "string": str, "bytes": bytes}
    members: dict[str, Any] = {}
    annotations: dict[str, Any] = {}

    def add(name: str, hint: Any, value: Any) -> None:
        annotations[name], members[name] = hint, value

    for number, kind in enumerate(SCALARS, 1):
        hint = python.get(kind, int)
        add(f"single_{kind}", hint, field(number, kind))
        add(f"many_{kind}", list[hint], field(number + 100, kind, repeated=True))  # type: ignore[valid-type]
        add(f"maybe_{kind}", hint | None, field(number + 200, kind, optional=True))
        add(f"mapped_{kind}", dict[int, hint], field(number + 5000, "map", map_meta=betterproto2.map_meta("int32", kind)))  # type: ignore[valid-type]
    add("nodes", dict[str, Node], field(301, "map", map_meta=betterproto2.map_meta("string", "message")))
    add("colours", dict[bool, Colour], field(302, "map", map_meta=betterproto2.map_meta("bool", "enum")))
    add("palette", list[Colour], field(303, "enum", repeated=True))
    add("node", Node | None, field(304, "message", optional=True))
    add("wrapped", str | None, field(305, "message", unwrap=lambda: Wrapped, optional=True))
    add("wraps", list[str], field(306, "message", unwrap=lambda: Wrapped, repeated=True))
    add("text", str | None, field(401, "string", group="choice"))
    add("number", int | None, field(402, "int64", group="choice"))
    add("tree", Node | None, field(403, "message", group="choice"))
    cls = type("Everything", (betterproto2.Message,), {**members, "__annotations__": annotations, "__module__": __name__})
    return dataclass(eq=False, repr=False)(cls)


Everything: Any = _everything()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tmp_path_factory.mktemp("kinds")
    (directory / "kinds.proto").write_text(PROTO)
    return compile_set(directory, directory, ("kinds.proto",))


@pytest.mark.parametrize("seed", range(40))
def test_every_kind_of_field(kinds: Any, seed: int) -> None:
    theirs = kinds.random("kinds.Everything", seed)
    wire = theirs.SerializeToString(deterministic=True)
    ours = encoding.decode(Everything, wire)
    again = kinds.cls("kinds.Everything").FromString(encoding.encode(ours))
    assert again.SerializeToString(deterministic=True) == wire
    assert encoding.encode(ours) == wire


def test_a_later_member_of_a_oneof_wins() -> None:
    first, second = Everything(text="a"), Everything(number=5)
    both = encoding.decode(Everything, encoding.encode(first) + encoding.encode(second))
    assert (both.text, both.number) == (None, 5)


def test_zero_members_and_optionals_are_written() -> None:
    assert encoding.encode(Everything(number=0)) == b"\x90\x19\x00"
    assert encoding.encode(Everything(maybe_bool=False)) == b"\xa8\x0d\x00"
    assert encoding.decode(Everything, bytes(Everything(maybe_bool=False))).maybe_bool is False


def test_types_may_contain_themselves() -> None:
    tree = Node(name="root", children=[Node(name="a", children=[Node(name="b")]), Node(name="c")])
    assert encoding.encode(tree) == bytes(tree)
    assert encoding.decode(Node, bytes(tree)) == tree
