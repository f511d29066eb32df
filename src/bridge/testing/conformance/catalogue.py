"""The list of specs, and how a module of ``bridge.testing.conformance.specs`` adds one.

A spec is an async function of one Stage that returns when the handler did as it must, and raises AssertionError with the
reason otherwise. Its docstring is its purpose, in one line.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bridge.errors import InvalidRequest
from bridge.ports.runtime import Ability

if TYPE_CHECKING:
    from bridge.testing.conformance.stage import Stage

PACKAGE = "bridge.testing.conformance.specs"
GROUPS = (
    *("features", "sandboxes", "containers", "stdio", "logs", "execs", "streams", "signals", "limits"),
    *("environment", "identity", "volumes", "namespaces", "network", "stats", "restarts", "crashes", "sweep", "costs"),
)
"""The modules of PACKAGE, in the order in which they run: what others rely on comes first."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One thing that a handler must do. ``source``: where that is said.

    ``needs``: abilities without which it can't be done. ``quick``: part of the short run. ``kills``: it ends the server or its
    monitor, so it needs a private one. ``network``: it needs CNI plugins. ``timeout``: seconds; slow runtimes get more.
    """

    name: str
    group: str
    purpose: str
    source: str
    check: Callable[[Stage], Awaitable[None]]
    needs: tuple[Ability, ...] = ()
    quick: bool = False
    kills: bool = False
    network: bool = False
    timeout: float = 60.0

    def __str__(self) -> str:
        return self.name


_specs: dict[str, Spec] = {}


def spec(
    source: str, *, needs: Sequence[Ability] = (), quick: bool = False, kills: bool = False, network: bool = False, timeout: float = 60.0
) -> Callable[[Callable[[Stage], Awaitable[None]]], Callable[[Stage], Awaitable[None]]]:
    """Add the decorated function to the list; see Spec."""

    def add(check: Callable[[Stage], Awaitable[None]]) -> Callable[[Stage], Awaitable[None]]:
        name = check.__name__.replace("_", "-")
        purpose = (check.__doc__ or "").strip()
        group = check.__module__.rpartition(".")[2]
        _specs[name] = Spec(name, group, purpose, source, check, tuple(needs), quick, kills, network, timeout)
        return check

    return add


def every() -> tuple[Spec, ...]:
    """All specs, in the order in which they run."""
    _show_both_sides()
    for group in GROUPS:
        importlib.import_module(f"{PACKAGE}.{group}")
    return tuple(sorted(_specs.values(), key=lambda each: GROUPS.index(each.group)))


def _show_both_sides() -> None:
    """Have pytest, where it runs, tell both sides of a comparison that fails in a spec."""
    pytest = sys.modules.get("pytest")
    if pytest is not None and PACKAGE not in sys.modules:
        pytest.register_assert_rewrite(PACKAGE)


def select(*, only: Sequence[str] = (), skip: Sequence[str] = (), quick: bool = False) -> tuple[Spec, ...]:
    """The specs whose name or group matches one of ``only`` (none: all) and none of ``skip``; globs. Raises InvalidRequest."""
    known = every()
    for pattern in (*only, *skip):
        if not any(_matches(each, [pattern]) for each in known):
            names = [name for each in known for name in (each.name, each.group)]
            near = difflib.get_close_matches(pattern, names, n=1)
            raise InvalidRequest(f"there is no spec {pattern!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return tuple(
        each for each in known if (each.quick or not quick) and (not only or _matches(each, only)) and not (skip and _matches(each, skip))
    )


def _matches(one: Spec, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(one.name, pattern) or fnmatchcase(one.group, pattern) for pattern in patterns)
