"""scripts/suite.sh: what of a live suite failed is run once more, alone, and not more than that."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = """
set -eu
. {scripts}/setup.sh
. {scripts}/suite.sh
VENV=venv
code=0
run_suite "$@" || code=$?
printf '%s' "$AGAIN"
exit "$code"
"""
TESTS = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    log = Path("log")
    log.write_text((log.read_text() if log.exists() else "") + f"{number} ")
    assert number >= FAILING or (ONCE and log.read_text().split().count(str(number)) == 2)
"""


@dataclass
class Checkout:
    """A small tree with six tests, of which the first few fail, the first time or always."""

    top: Path

    def run(self, *arguments: str, failing: int, once: bool = True) -> tuple[int, str, list[int]]:
        """Exit code, what was told at the end, and how often each test ran."""
        (self.top / "tests" / "test_it.py").write_text(TESTS.replace("FAILING", str(failing)).replace("ONCE", str(once)))
        argv = ["sh", "-c", RUN.format(scripts=SCRIPTS), "sh", *arguments]
        done = subprocess.run(argv, cwd=self.top, capture_output=True, text=True, timeout=100, check=False)
        log = (self.top / "log").read_text().split() if (self.top / "log").exists() else []
        return done.returncode, done.stdout.splitlines()[-1] if "tried again" in done.stdout else "", [log.count(str(n)) for n in range(6)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Checkout(tmp_path)


@pytest.mark.parametrize("suite", ["integration", "conformance"])
def test_few_failures_are_tried_once_more_alone_and_named(checkout: Checkout, suite: str) -> None:
    stale = checkout.top / ".pytest_cache" / suite / "v" / "cache"
    stale.mkdir(parents=True)
    (stale / "lastfailed").write_text(json.dumps({f"tests/test_it.py::test_it[{n}]": True for n in (3, 4, 5)}))
    code, told, runs = checkout.run(suite, "tests", failing=2)
    assert told == "tried again: 2 failed, then passed: tests/test_it.py::test_it[0] tests/test_it.py::test_it[1]"
    assert (code, runs) == (0, [2, 2, 1, 1, 1, 1])


def test_what_fails_again_is_a_failure(checkout: Checkout) -> None:
    assert checkout.run("integration", "tests", failing=1, once=False) == (1, "", [2, 1, 1, 1, 1, 1])


def test_many_failures_are_no_chance(checkout: Checkout) -> None:
    assert checkout.run("integration", "tests", failing=4) == (1, "", [1] * 6)


@pytest.mark.parametrize("arguments", [("unit", "tests"), ("integration", "tests", "--maxfail=9")])
def test_nothing_else_is_tried_again(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    assert checkout.run(*arguments, failing=1) == (1, "", [1] * 6)


def test_what_is_no_failed_test_is_not_tried_again(checkout: Checkout) -> None:
    (checkout.top / "tests" / "test_unreadable.py").write_text("import nothing_of_that_name\n")
    code, told, runs = checkout.run("integration", "tests", failing=0)
    assert (code, told, runs) == (2, "", [0] * 6)


def test_success_is_plain(checkout: Checkout) -> None:
    assert checkout.run("integration", "tests", failing=0) == (0, "", [1] * 6)
