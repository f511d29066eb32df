"""Templates of CNI configurations, as containerd's ``conf_template`` has them: the part of Go's text/template that they use. Pure.

Values: ``.PodCIDR`` (the first range), ``.PodCIDRRanges`` (all), ``.Routes`` (0.0.0.0/0 and ::/0 as the families need). Actions:
values and ``$variables``; ``range`` (also ``range $i, $x := …``) and ``if``, each with ``else``; ``index``, ``len``, ``eq``, ``ne`` and
``not``; comments; ``{{-`` and ``-}}``. Anything else is refused with its line, and so is a name that does not exist: a mistake in an
operator's file must not become a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from bridge.errors import ConfigError

_ACTION = re.compile(r"\{\{(?:(-)(?=\s))?(.*?)(?:(?<=\s)(-))?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\$?\w*(?:\.\w+)+|\.|\$\w*|[0-9]+|"[^"\\]*"|:=|,|[A-Za-z]+')
_DEEPEST = 32

Value = str | int | bool | Sequence["Value"] | Mapping[str, "Value"]
_FUNCTIONS: Mapping[str, tuple[int, Callable[..., Value]]] = {
    "index": (2, lambda values, at: values[at]),
    "len": (1, len),
    "eq": (2, lambda one, other: one == other),
    "ne": (2, lambda one, other: one != other),
    "not": (1, lambda value: not value),
}
"""Name: how many arguments, and what it does."""


@dataclass(slots=True)
class _Node:
    """Text, a value, or a block: what it stands on (``words``), its body and its ``else``."""

    kind: str
    line: int
    text: str = ""
    words: Sequence[str] = ()
    names: Sequence[str] = ()
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


def render(template: str, values: Mapping[str, Value], source: str) -> str:
    """``template`` with ``values`` filled in. Raises ConfigError naming ``source`` and the line."""
    parser = _Parser(template, source)
    return "".join(_Renderer(values, source).all(parser.nodes(), values, {}))


def _fail(source: str, line: int, problem: str) -> NoReturn:
    raise ConfigError(f"{source}: line {line}: {problem}")


class _Parser:
    """Cuts the template into nodes, one nested block after the other."""

    def __init__(self, template: str, source: str) -> None:
        self._source = source
        self._parts = list(self._split(template))
        self._at = 0

    def nodes(self) -> list[_Node]:
        """The whole template."""
        found, _ = self._until((), _Node("", 1), 0)
        return found

    def _split(self, template: str) -> Iterator[_Node]:
        end, trim = 0, False
        for match in _ACTION.finditer(template):
            text = template[end : match.start()]
            line = template.count("\n", 0, match.start()) + 1
            yield self._text(text.rstrip() if match[1] else text, line, trim)
            action = match[2].strip()
            if not (action.startswith("/*") and action.endswith("*/")):
                yield _Node("action", line, text=action)
            end, trim = match.end(), bool(match[3])
        yield self._text(template[end:], template.count("\n") + 1, trim)

    def _text(self, text: str, line: int, trim: bool) -> _Node:
        if "{{" in text:
            _fail(self._source, line, "'{{' is never closed")
        return _Node("text", line, text=text.lstrip() if trim else text)

    def _until(self, ends: tuple[str, ...], opened: _Node, depth: int) -> tuple[list[_Node], _Node]:
        """Nodes up to an action that begins with one of ``ends``, and that action; () means the end of the template."""
        if depth > _DEEPEST:
            _fail(self._source, opened.line, f"blocks are nested deeper than {_DEEPEST}")
        found: list[_Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            word = part.text.split(None, 1)[0] if part.kind == "action" and part.text else ""
            if part.kind == "text":
                found.append(part)
            elif word in ("end", "else"):
                if word not in ends:
                    _fail(self._source, part.line, f"{{{{{word}}}}} closes nothing")
                return found, part
            else:
                found.append(self._block(part, word, depth) if word in ("range", "if") else self._value(part))
        if ends:
            _fail(self._source, opened.line, f"{{{{{opened.text}}}}} has no {{{{end}}}}")
        return found, opened

    def _value(self, part: _Node) -> _Node:
        return _Node("value", part.line, part.text, self._words(part.text, part))

    def _block(self, part: _Node, word: str, depth: int) -> _Node:
        rest = part.text.removeprefix(word)
        names: list[str] = []
        if word == "range" and ":=" in rest:
            declared, rest = rest.split(":=", 1)
            names = [name.strip() for name in declared.split(",")]
            if len(names) > 2 or not all(re.fullmatch(r"\$\w+", name) for name in names):
                _fail(self._source, part.line, f"{{{{{part.text}}}}}: one or two $variables are due before ':='")
        node = _Node(word, part.line, part.text, self._words(rest, part), names)
        node.body, closing = self._until(("end", "else"), part, depth + 1)
        more = closing.text.removeprefix("else").strip()
        if closing.text == "else":
            node.otherwise, _ = self._until(("end",), part, depth + 1)
        elif closing.text.startswith("else") and more.startswith("if ") and word == "if":
            node.otherwise = [self._block(_Node("action", closing.line, more), "if", depth + 1)]  # it takes the common {{end}}
        elif closing.text != "end":
            _fail(self._source, closing.line, f"{{{{{closing.text}}}}} is not understood")
        return node

    def _words(self, text: str, part: _Node) -> list[str]:
        words = _TOKEN.findall(text)
        known = bool(words) and (not words[0].isalpha() or words[0] in _FUNCTIONS)
        if not known or "".join(words) != "".join(text.split()):
            _fail(self._source, part.line, f"{{{{{part.text}}}}} is not understood")
        return words


class _Renderer:
    """Fills in values."""

    def __init__(self, root: Mapping[str, Value], source: str) -> None:
        self._root = root
        self._source = source

    def all(self, nodes: Sequence[_Node], dot: Value, variables: Mapping[str, Value]) -> Iterator[str]:
        """The text of each of ``nodes``, where ``.`` is ``dot``."""
        for node in nodes:
            if node.kind == "text":
                yield node.text
            elif node.kind == "value":
                yield self._written(node, self._of(node, dot, variables))
            elif node.kind == "if":
                yield from self.all(node.body if self._of(node, dot, variables) else node.otherwise, dot, variables)
            else:
                yield from self._range(node, dot, variables)

    def _range(self, node: _Node, dot: Value, variables: Mapping[str, Value]) -> Iterator[str]:
        values = self._of(node, dot, variables)
        if not isinstance(values, list | tuple):
            _fail(self._source, node.line, f"{{{{{node.text}}}}}: it is no list")
        for index, value in enumerate(values):
            declared = dict(zip(node.names, (index, value) if len(node.names) == 2 else (value,), strict=False))
            yield from self.all(node.body, value, {**variables, **declared})
        if not values:
            yield from self.all(node.otherwise, dot, variables)

    def _written(self, node: _Node, value: Value) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if not isinstance(value, str | int):
            _fail(self._source, node.line, f"{{{{{node.text}}}}} is a list: write it with range")
        return str(value)

    def _of(self, node: _Node, dot: Value, variables: Mapping[str, Value]) -> Value:
        first, *rest = node.words
        arity, function = _FUNCTIONS.get(first, (0, None))
        if function is None:
            if rest:
                _fail(self._source, node.line, f"{{{{{node.text}}}}} is not understood")
            return self._term(node, first, dot, variables)
        arguments = [self._term(node, word, dot, variables) for word in rest]
        if len(arguments) != arity:
            _fail(self._source, node.line, f"{{{{{node.text}}}}}: {first} takes {arity} arguments")
        try:
            return function(*arguments)
        except (TypeError, LookupError) as exc:
            raise ConfigError(f"{self._source}: line {node.line}: {{{{{node.text}}}}}: {exc}") from exc

    def _term(self, node: _Node, word: str, dot: Value, variables: Mapping[str, Value]) -> Value:
        if word.startswith('"'):
            return word[1:-1]
        if word.isdigit():
            return int(word)
        head, *names = word.split(".")
        value: Value | None = dot if not head else self._root if head == "$" else variables.get(head)
        if value is None:
            _fail(self._source, node.line, f"{{{{{node.text}}}}}: {word} does not exist")
        for name in filter(None, names):
            if not isinstance(value, Mapping) or name not in value:
                known = ", ".join(f".{known}" for known in self._root)
                _fail(self._source, node.line, f"{{{{{node.text}}}}}: {word} does not exist; there are {known}")
            value = value[name]
        return value
