"""A plugin as its author meets it: written by ``plugins new``, installed, checked, tested, found by the server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import bridge
from bridge.cli import plugins
from bridge.generic.oci import FlagOptions, OciOptions
from bridge.ports.runtime import ContainerHandle, ExecProcess, RuntimeBackend, SandboxHandle

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
            [sys.executable, "-m", *words], cwd=self.top, env=environment, capture_output=True, text=True, timeout=280, check=False
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


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Author:
    """The worked example, installed from a copy, as building leaves files beside the sources."""
    directory = tmp_path_factory.mktemp("example")
    shutil.copytree(_SOURCE.parent / "docs/examples/cri-bridge-chroot", directory / "dist")
    made = Author(directory / "dist", directory / "site")
    made.install()
    return made


@pytest.fixture(scope="module")
def types_of_bridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's cache: the second who uses the interface finds its types."""
    return tmp_path_factory.mktemp("types")


@pytest.mark.parametrize("whose", ["author", "example"])
def test_it_is_typed_and_in_style(request: pytest.FixtureRequest, types_of_bridge: Path, whose: str) -> None:
    author: Author = request.getfixturevalue(whose)
    author.python("mypy", f"--cache-dir={types_of_bridge}")
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


_SPECS = (
    *("abilities-are-probed", "pod-lifecycle", "exit-codes", "missing-command", "terminal", "stdin-stays-open", "exec-results"),
    *("exec-of-nothing", "stop-of-the-stubborn", "oom-is-told", "resources-are-updated", "users", "capabilities", "port-forward"),
    *("pod-address", "container-stats", "server-is-killed", "monitor-is-killed"),
)


@pytest.mark.timeout(300)
def test_the_worked_example_conforms(example: Author) -> None:
    only = [f"--only={spec}" for spec in _SPECS]
    said = example.python("bridge", "conform", "chroot", "--config", os.devnull, *only, paths=[example.site])
    assert f"CONFORMS: {len(_SPECS)} specs" in said
    assert f"{len(_SPECS)} passed" in said


def test_the_pages_commands_make_a_plugin_of_it_with_another_name(tmp_path: Path) -> None:
    page = (_SOURCE.parent / "docs/writing-a-runtime.md").read_text()
    block = page.split("Copy it, and make it yours:")[1].split("```")[1]
    commands = [line.removeprefix("$ ") for line in block.splitlines() if re.match(r"\$ (cp|mv|grep) ", line)]
    assert len(commands) == 3
    shutil.copytree(_SOURCE.parent / "docs/examples", tmp_path / "docs/examples")
    subprocess.run(["sh", "-euc", "\n".join(commands)], cwd=tmp_path, timeout=60, check=True)
    mine = Author(tmp_path / "cri-bridge-mine", tmp_path / "site")
    mine.install()
    listed = json.loads(mine.python("bridge", "plugins", "ls", "-o", "json", paths=[mine.site]))
    assert [(each["fault"], each["runtimes"]) for each in listed if each["name"] == "mine"] == [("", ["mine"])]


def test_the_worked_example_has_every_method_of_the_port() -> None:
    """Whoever adds one to the port adds it to the example that shows them all."""
    directory = _SOURCE.parent / "docs/examples/cri-bridge-chroot/src/bridge_chroot"
    there = set(re.findall(r"def (\w+)", "".join((directory / name).read_text() for name in ("backend.py", "container.py"))))
    ports = (RuntimeBackend, SandboxHandle, ContainerHandle, ExecProcess)
    asked = {name for port in ports for name in vars(port) if not name.startswith("_")}
    assert asked - there == {"features", "sandbox_kind"}, "which are attributes there"


def test_every_option_of_the_plugin_oci_is_on_the_page() -> None:
    page = (_SOURCE.parent / "docs/writing-a-runtime.md").read_text()
    rows = "".join(line.rsplit("|", 3)[0] + line.rsplit("|", 3)[-2] for line in page.splitlines() if line.startswith("| `"))
    words = set(re.findall(r"`(\w+)`", rows))
    assert set(OciOptions.model_fields) | set(FlagOptions.model_fields) <= words
