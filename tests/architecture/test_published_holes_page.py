"""docs/security.md has a row for each published hole that a test is named after, and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"
_ROW = re.compile(r"^\| (CVE-[^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_IN_A_NAME = re.compile(r"(?:cve|and)_(20\d\d)_(\d{4,})")


def rows() -> list[tuple[list[str], list[str]]]:
    """The ids and the tests of each row."""
    text = PAGE.read_text("utf-8")
    return [(re.findall(r"CVE-\d+-\d+", row[1]), re.findall(r"`([^`]+)`", row[4])) for row in _ROW.finditer(text)]


def named_in(path: Path) -> set[str]:
    """The names of the tests in a module."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")}


def test_there_are_rows() -> None:
    assert len(rows()) > 20


@pytest.mark.parametrize(("ids", "tests"), rows(), ids=lambda value: value[0] if value and value[0].startswith("CVE") else "")
def test_each_row_names_tests_that_exist(ids: list[str], tests: list[str]) -> None:
    assert tests
    for test in tests:
        module, _, name = test.partition("::")
        assert name in named_in(TESTS / module), test


def test_each_hole_that_a_test_is_named_after_has_a_row() -> None:
    told = {each for ids, _ in rows() for each in ids}
    named = {
        f"CVE-{year}-{number}"
        for path in TESTS.glob("**/test_*.py")
        if path.parent != Path(__file__).parent
        for name in named_in(path)
        for year, number in _IN_A_NAME.findall(name)
    }
    assert sorted(named - told) == []
