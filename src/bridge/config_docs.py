"""Writing the configuration down: the commented sample file, docs/config.md, and a loaded configuration as TOML.

All three come from the models in ``config``: types and defaults by reflection, the words from the string below each
field, read with ``ast`` so that a running server pays nothing for them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bridge import config, config_images, config_runtime
from bridge.config import Below, Config, Table, Unit
from bridge.config_files import Key, Loaded, dotted

_MODULES = (config, config_runtime, config_images)
_SAMPLE_HEAD = """\
# cri-bridge configuration. Every key is shown with its default, commented out.
# Files in /etc/cri-bridge/conf.d/*.toml are read after this one, by name: tables merge, everything else is replaced.
# Check with `cri-bridge config check`; see what is in force with `cri-bridge config show`.
"""
_EXAMPLE_NAMES = {
    "runtime.handlers.<name>": "runtime.handlers.crun",
    "images.registries.<name>": 'images.registries."registry.example:5000"',
}
_PAGE_HEAD = """\
# Configuration

Generated from `src/bridge/config*.py` by `cri-bridge config default --markdown`; don't edit.

`/etc/cri-bridge/config.toml` is read first, then `/etc/cri-bridge/conf.d/*.toml` by name. A later file overrides an
earlier one: tables merge key by key, everything else, lists too, is replaced. `cri-bridge config default` prints a file
with every default, `check` validates, `show` prints what is in force and where it came from. An unknown key is refused.
A relative path marked *below* a directory is taken there.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented key: its type in words, its default as TOML ("" when unset or required), what it does and why."""

    key: Key
    type: str
    default: str
    what: str
    why: str


def default_toml() -> str:
    """A configuration file with every key, its default and its documentation, all commented out but the section headers."""
    lines = [_SAMPLE_HEAD.rstrip()]
    for name, model in tables():
        header = f"[{name}]" if "<" not in name else f"#[{_EXAMPLE_NAMES[name]}]"
        lines += ["", *(f"# {line}" for line in wrap(_first_line(model), 110)), header]
        for entry in entries(name, model):
            examples = model.model_fields[entry.key[-1]].examples
            value = toml_value(examples[0]) if examples else entry.default
            if f"{'.'.join(entry.key)}.<name>" in _EXAMPLE_NAMES:
                value = ""  # has its own header below
            words = f"{entry.what} ({entry.type}) Why: {entry.why}"
            lines += ["", *(f"# {line}" for line in wrap(words, 110)), *([f"#{entry.key[-1]} = {value}"] if value else ())]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """docs/config.md."""
    lines = [_PAGE_HEAD]
    for name, model in tables():
        lines += [f"## `[{name}]`", "", _first_line(model), "", "| key | type | default | what | why |", "| --- | --- | --- | --- | --- |"]
        for entry in entries(name, model):
            cells = (f"`{entry.key[-1]}`", entry.type, f"`{entry.default}`" if entry.default else "", entry.what, entry.why)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def show(loaded: Loaded) -> str:
    """The configuration in force as TOML that reads back equal; keys set by a file say which."""
    lines: list[str] = []
    for section in type(loaded.config).model_fields:
        _show_table((section,), getattr(loaded.config, section), loaded.origins, lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def entries(table: str, model: type[Table]) -> Iterator[Entry]:
    """The documented keys of one table."""
    for name, info in model.model_fields.items():
        what, _, why = _field_docs()[model.__name__][name].partition("Why:")
        yield Entry((*table.split("."), name), _type_in_words(info), _default(info), what.strip(), why.strip())


def _show_table(key: Key, table: BaseModel, origins: Mapping[Key, Path], lines: list[str]) -> None:
    lines += ["", f"[{dotted(key)}]"]
    deeper: list[tuple[Key, BaseModel]] = []
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, dict) and value and all(isinstance(item, BaseModel) for item in value.values()):
            deeper += [((*key, name, str(item_name)), item) for item_name, item in value.items()]
            continue
        if value is None:
            continue
        origin = origins.get((*key, name))
        lines.append(f"{name} = {toml_value(value, octal=name.endswith('_mode'))}" + (f"  # {origin}" if origin else ""))
    for inner_key, inner in deeper:
        _show_table(inner_key, inner, origins, lines)


def tables() -> Iterator[tuple[str, type[Table]]]:
    """Every table by its TOML name; tables of free names as ``runtime.handlers.<name>``."""
    for section, info in Config.model_fields.items():
        model = info.annotation
        assert isinstance(model, type)
        assert issubclass(model, Table)
        yield section, model
        for name, inner in model.model_fields.items():
            found = [arg for arg in get_args(inner.annotation) if isinstance(arg, type) and issubclass(arg, Table)]
            yield from ((f"{section}.{name}.<name>", table) for table in found)


def _first_line(model: type[Table]) -> str:
    return inspect.cleandoc(model.__doc__ or "").splitlines()[0]


@functools.cache
def _field_docs() -> dict[str, dict[str, str]]:
    """Class name → field name → the string below the field, joined to one line."""
    found: dict[str, dict[str, str]] = {}
    for node in (node for module in _MODULES for node in ast.parse(inspect.getsource(module)).body):
        if not isinstance(node, ast.ClassDef):
            continue
        docs = found[node.name] = {}
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                docs[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _type_in_words(info: FieldInfo) -> str:
    words = _annotation_in_words(info.annotation)
    for mark in info.metadata:
        if isinstance(mark, Unit):
            words = "octal permission bits" if mark.name == "mode" else mark.name
        elif isinstance(mark, Below):
            words = f"path, below `server.{mark.root}`"
    return words


def _annotation_in_words(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("unset" if arg is type(None) else _annotation_in_words(arg) for arg in args)
    if origin is list:
        words = _annotation_in_words(args[0])
        return f"list of {words}" if get_origin(args[0]) is Literal else f"list of {words}s"
    if origin is dict:
        return "table"
    if args:  # Annotated
        unit = next((mark.name for mark in args[1:] if isinstance(mark, Unit)), None)
        return unit or _annotation_in_words(args[0])
    return {bool: "true or false", int: "number", float: "number", str: "string", Path: "path"}.get(annotation, "table")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None or (isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values())):
        return ""
    return toml_value(value, octal=any(isinstance(mark, Unit) and mark.name == "mode" for mark in info.metadata))


def toml_value(value: Any, *, octal: bool = False) -> str:
    """``value`` (of the kinds that a configuration holds) as an inline TOML value."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if octal:
            return f"0o{value:o}"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{dotted((str(k),))} = {toml_value(v)}" for k, v in value.items()) + " }" if value else "{}"
        case _:
            return json.dumps(str(value))
