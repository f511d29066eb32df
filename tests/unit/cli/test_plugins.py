"""``cri-bridge plugins``: what is listed of good and faulty ones, and what a skeleton may be called."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from bridge.cli import plugins as verbs
from bridge.cli.main import main
from bridge.errors import AlreadyExists, HostError, InvalidRequest
from bridge.plugin_facts import check_version
from bridge.plugins import Plugins, hookimpl
from tests.unit.test_plugins import runtime

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Have these modules be the installed plugins; None for one that can't be imported."""

    def put(**modules: types.SimpleNamespace | None) -> None:
        points = [metadata.EntryPoint(name, f"bridge_{name}", "cri_bridge.runtimes") for name in modules]
        monkeypatch.setattr("bridge.plugins.metadata.entry_points", lambda group: points)
        for name, content in modules.items():
            monkeypatch.setitem(__import__("sys").modules, f"bridge_{name}", content)

    return put


def announcing(name: str, api: int = 1) -> types.SimpleNamespace:
    return types.SimpleNamespace(bridge_register_runtime=hookimpl(lambda: runtime(name, api=api)))


def adjusting() -> types.SimpleNamespace:
    def bridge_adjust_spec(spec: object) -> None: ...

    return types.SimpleNamespace(bridge_adjust_spec=hookimpl(bridge_adjust_spec))


def test_good_ones(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(good=announcing("good"), adjuster=adjusting())
    assert main(["plugins", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["PLUGIN", "adjuster", "good"]
    assert "bridge_adjust_spec" in lines[1]
    assert "handlers with plugin = 'good'" in lines[2]


def test_faulty_ones_and_why(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(broken=None, future=announcing("future", 99), past=announcing("past", 0), good=announcing("good"))
    assert main(["plugins", "ls", "-o", "json"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["good"]["fault"] == ""
    assert (found["good"]["runtimes"], found["good"]["api"]) == (["good"], 1)
    assert "its module bridge_broken can't be loaded: ModuleNotFoundError" in found["broken"]["fault"]
    assert found["future"]["fault"] == (
        "it was written for version 99 of the plugin interface, which is newer than this server's 1: "
        "upgrade cri-bridge, or install an older release of the plugin"
    )
    assert found["past"]["fault"] == (
        "it was written for version 0 of the plugin interface, which is older than this server's 1: install a newer release of the plugin"
    )
    assert found["future"]["runtimes"] == []


def test_several_versions_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.plugin_facts.OLDEST_API", 2)
    monkeypatch.setattr("bridge.plugin_facts.API_VERSION", 4)
    for api in (2, 3, 4):
        check_version(api)
    for api, words in ((1, "older than this server's 2 to 4"), (5, "newer than this server's 2 to 4")):
        with pytest.raises(Exception, match=words):
            check_version(api)
    with pytest.raises(Exception, match="must be the number of the interface's version"):
        check_version("4")


def test_what_the_distribution_wants_is_told_when_its_module_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        name, version = "cri-bridge-next", "9.0"
        requires = ("pydantic>=2", "cri-bridge-runc", "cri-bridge>=9.0")

    point = metadata.EntryPoint("next", "bridge_next", "cri_bridge.runtimes")
    point.__dict__["dist"] = Distribution()
    monkeypatch.setattr("bridge.plugins.metadata.entry_points", lambda group: [point])
    plugins = Plugins()
    plugins.load_entry_points()
    (found,) = plugins.found
    assert (found.distribution, found.version, found.wants) == ("cri-bridge-next", "9.0", "cri-bridge>=9.0")
    assert "its distribution wants 'cri-bridge>=9.0'" in found.fault


@pytest.mark.parametrize("name", ["Upper", "under_score", "9lives", "double--dash", "", "a b", "../x", "trailing-"])
def test_names_that_can_not_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is no name for a plugin"):
        verbs.write(name, tmp_path / "new", binary="x")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "mine", "--dir", str(tmp_path)]) == 0
    assert "pip install -e" in capsys.readouterr().out
    with pytest.raises(AlreadyExists, match="exists already"):
        verbs.write("mine", tmp_path / "cri-bridge-mine", binary="x")
    (tmp_path / "file").touch()
    with pytest.raises(HostError):
        verbs.write("mine", tmp_path / "file" / "below", binary="x")


def test_every_word_of_the_templates_is_filled_in(tmp_path: Path) -> None:
    verbs.write("two-words", tmp_path / "new", binary="tool")
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"pyproject.toml", "README.md", "handler.py", "options.py", "py.typed"}
    for path in files:
        assert "$" not in path.read_text().replace("$ ", ""), path
    assert (tmp_path / "new/src/bridge_two_words/__init__.py").exists()
    assert "class TwoWordsOptions" in (tmp_path / "new/src/bridge_two_words/options.py").read_text()
