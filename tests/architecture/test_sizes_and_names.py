"""House rules that a machine can check: sizes, names, docstrings, and nothing that is only true on one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
MAX_MODULE = 300
MAX_FUNCTION = 40
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
# Hosts of package registries are put together from parts, so that this file names none of them either.
_REGISTRIES = "|".join(
    re.escape(".".join(parts)) for parts in (("pythonhosted", "org"), ("pypi", "org"), ("deb", "debian", "org"), ("npmjs", "org"))
)
OTHERS_MACHINES = re.compile(rf"/root/\.\w|/home/[a-z]+/|/Users/\w+|/(?:far)m\b|(?<![\w./-])/(?:wor)k/|{_REGISTRIES}")
LOCK_ADDRESS = re.compile(r"https?://\S+|--(?:extra-)?index-url|--find-links")


def sources() -> list[Path]:
    """Python modules that are shipped or run by people: src, plugins, benchmarks; not tests, not generated code."""
    found = [*TOP.glob("src/**/*.py"), *TOP.glob("plugins/*/src/**/*.py"), *TOP.glob("benchmarks/**/*.py")]
    return sorted(path for path in found if "_proto" not in path.parts)


def tracked() -> list[Path]:
    """Every file under version control (the sources alone without git, or when this isn't a checkout)."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
    return [TOP / name for name in names if name and (TOP / name).is_file()] or sources()


def shown(path: Path) -> str:
    return str(path.relative_to(TOP))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    assert function.end_lineno
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno
        total -= first.end_lineno - first.lineno + 1
    return total


def test_there_is_something_to_check() -> None:
    assert len(sources()) > 20


def test_modules_are_small() -> None:
    long = {shown(path): lines for path in sources() if (lines := len(path.read_text("utf-8").splitlines())) > MAX_MODULE}
    assert long == {}


def test_test_modules_are_readable_too() -> None:
    tests = [*TOP.glob("tests/**/*.py"), *TOP.glob("plugins/*/tests/**/*.py")]
    long = {shown(path): lines for path in tests if (lines := len(path.read_text("utf-8").splitlines())) > 2 * MAX_MODULE}
    assert long == {}


def test_functions_are_small() -> None:
    long = [
        f"{shown(path)}:{function.lineno} {function.name}: {code_lines(function)}"
        for path in sources()
        for function in functions(ast.parse(path.read_text("utf-8")))
        if code_lines(function) > MAX_FUNCTION
    ]
    assert long == []


def test_no_module_or_package_is_a_drawer() -> None:
    assert [shown(path) for path in sources() if FORBIDDEN_NAMES & {path.stem, path.parent.name}] == []


def test_modules_say_what_they_decide() -> None:
    assert [shown(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))] == []


def test_package_files_hold_a_docstring_only() -> None:
    filled = []
    for path in sources():
        if path.name != "__init__.py" or path == TOP / "src" / "bridge" / "__init__.py" or "plugins" in path.parts:
            continue  # the root package also holds the version, and a plugin's is what its entry point names
        body = ast.parse(path.read_text("utf-8")).body
        if len(body) != 1 or not isinstance(body[0], ast.Expr):
            filled.append(shown(path))
    assert filled == []


@pytest.mark.parametrize("construct", ["asyncio.shield(", "asyncio.create_task(", "asyncio.ensure_future(", "loop.create_task("])
def test_no_task_without_an_owner(construct: str) -> None:
    assert [shown(path) for path in sources() if construct in path.read_text("utf-8")] == []


def test_nothing_is_put_off() -> None:
    marks = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    assert [shown(path) for path in sources() if marks.search(path.read_text("utf-8"))] == []


def test_no_file_names_a_machine_or_a_package_host() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{shown(path)}: {match[0]}" for match in OTHERS_MACHINES.finditer(text)]
        if path.suffix == ".lock":
            found += [f"{shown(path)}: {match[0]}" for match in LOCK_ADDRESS.finditer(text)]
    assert found == []
