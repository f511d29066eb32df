"""A plugin as its author meets it: written by ``plugins new``, installed, checked, tested, found by the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import bridge
from bridge.cli import plugins

pytestmark = pytest.mark.root

_SOURCE = Path(bridge.__file__).parent.parent
_PATHS = [_SOURCE, *sorted(_SOURCE.parent.glob("plugins/*/src"))]


class Author:
    """Somebody with cri-bridge installed, and a distribution in ``top`` that is installed into ``site``."""

    def __init__(self, top: Path, site: Path) -> None:
        self.top = top
        self.site = site

    def python(self, *words: str, paths: Sequence[Path] = (), ok: bool = True) -> str:
        """What ``python -m …`` says there."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*_PATHS, *paths])), "MYPYPATH": str(_SOURCE)}
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=self.top, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self) -> None:
        offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        self.python("pip", "install", "-q", *offline, "--target", str(self.site), ".")


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    directory = tmp_path_factory.mktemp("author")
    plugins.write("my-runc", directory / "dist", binary="runc")
    made = Author(directory / "dist", directory / "site")
    made.install()
    return made


def test_it_is_typed_and_in_style(author: Author) -> None:
    author.python("mypy", "--no-incremental")
    author.python("ruff", "check", "--isolated", "--line-length", "140", "--select", "E,F,I,B,UP,SIM", ".")
    author.python("ruff", "format", "--isolated", "--line-length", "140", "--check", ".")


def test_the_server_finds_it(author: Author) -> None:
    listed = json.loads(author.python("bridge", "plugins", "ls", "-o", "json", paths=[author.site]))
    (mine,) = [each for each in listed if each["name"] == "my-runc"]
    assert (mine["distribution"], mine["version"], mine["runtimes"], mine["fault"]) == ("cri-bridge-my-runc", "0.1.0", ["my-runc"], "")
    assert {"runc", "oci", "shim"} <= {each["name"] for each in listed}, "and those that come with it"


def test_its_own_tests_pass_and_so_does_conformance(author: Author) -> None:
    quick = ["-q", "-p", "no:cacheprovider", "--conform-only=exit-codes", "--conform-only=pod-lifecycle"]
    said = author.python("pytest", *quick, paths=[author.site])
    assert " passed" in said
    assert "skipped" not in said
