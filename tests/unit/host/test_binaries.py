from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.host import binaries


@pytest.fixture
def program(tmp_path: Path) -> Path:
    made = tmp_path / "tool"
    made.touch(mode=0o755)
    return made


def test_by_name_and_by_path(program: Path) -> None:
    assert binaries.find("tool", f"/nowhere:{program.parent}") == program
    assert binaries.find(str(program), "/nowhere") == program


def test_what_is_not_there_names_the_option_and_where_it_was_sought(program: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.shim: there is no executable 'tool' in /nowhere"):
        binaries.find("tool", "/nowhere", field="options.shim")
    program.chmod(0o644)
    with pytest.raises(ConfigError, match=r"options\.path: there is no executable '/"):
        binaries.find(str(program), "/nowhere")


def test_a_relative_path_would_depend_on_where_the_server_was_started(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.parent)
    with pytest.raises(ConfigError, match="must be an absolute path or a bare name"):
        binaries.find("./tool", "/nowhere")


def test_the_usual_path_where_the_server_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    assert binaries.search_path() == binaries.DEFAULT_PATH
