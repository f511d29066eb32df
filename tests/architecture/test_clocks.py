"""Deadlines are on the monotonic clock: the wall clock is read for stamps only, and nothing is computed from it but what is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_sizes_and_names import TOP, shown, sources

_WALL = {"time", "time_ns", "now", "utcnow", "today"}
ALLOWED = {
    "src/bridge/images/transfer.py": "Retry-After may be a date; what it gives is bounded by the pull's patience",
    "src/bridge/images/check.py": "layers are read again after days, whichever process read them before; it looks again every minute",
    "src/bridge/core/stamps.py": "where stamps are put in order",
    "src/bridge/images/snapshots.py": "the oldest of stamps",
    "src/bridge/host/trial_cgroups.py": "the age of cgroups that other processes made; nothing waits for it",
    "src/bridge/testing/conformance/specs/containers.py": "checks stamps",
}


def _reads_wall(node: ast.AST) -> bool:
    for each in ast.walk(node):
        if (
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr in _WALL
            and isinstance(each.func.value, ast.Name)
            and each.func.value.id in ("time", "datetime", "date")
        ):
            return True
    return False


def computed(source: str) -> Iterator[int]:
    """Lines that add, subtract, compare or take the least of what the wall clock says."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.BinOp | ast.Compare | ast.AugAssign | ast.Call) or not _reads_wall(node):
            continue
        if not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and node.func.id in ("min", "max")):
            yield node.lineno


def test_nothing_waits_by_the_wall_clock() -> None:
    found = [
        f"{shown(path)}:{line}"
        for path in sources()
        if Path(shown(path)).parts[0] != "benchmarks" and shown(path) not in ALLOWED
        for line in computed(path.read_text())
    ]
    assert found == [], "use anyio.current_time() or time.monotonic(), or say in ALLOWED why the wall clock is right"


def test_it_sees_what_it_looks_for() -> None:
    assert list(computed("import time\ndeadline = time.time() + 5\n")) == [2]
    assert list(computed("import time\nif time.time_ns() > x: pass\n")) == [2]
    assert list(computed("import time\nstamp = time.time_ns()\nwait = time.monotonic() + 5\n")) == []
    assert all((TOP / name).is_file() for name in ALLOWED)
