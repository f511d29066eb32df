"""Which handlers the demo opens. The demo itself is run by an integration test."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.__main__ import main
from bridge.cli.demo import chosen
from bridge.cli.demo_host import DemoHost
from bridge.config import Config, Handler
from bridge.config_files import load
from bridge.errors import ConfigError
from bridge.plugins import Plugins


def opened(root: Path, given: Config) -> dict[str, str]:
    """Handler → plugin of what the private server of the demo would open."""
    root.mkdir()
    host = DemoHost(root)
    host.prepare(given)
    return {name: handler.plugin for name, handler in load([host.config_file]).runtime.handlers.items() if handler.enabled}


def test_without_a_name_every_enabled_handler_is_opened(tmp_path: Path) -> None:
    assert opened(tmp_path / "demo", chosen(Config(), [])) == {"runc": "runc", "crun": "runc"}


def test_only_the_named_handler_is_opened_also_when_it_is_disabled(tmp_path: Path) -> None:
    given = Config.model_validate({"runtime": {"handlers": {"mine": {"plugin": "runc", "enabled": False, "options": {"path": "/x"}}}}})
    one = chosen(given, ["mine"])
    assert one.runtime.handlers["mine"].options == {"path": "/x"}
    assert opened(tmp_path / "one", one) == {"mine": "runc"}
    assert opened(tmp_path / "two", chosen(given, ["mine", "crun"])) == {"mine": "runc", "crun": "runc"}


def test_an_installed_plugin_is_a_handler_with_its_defaults(tmp_path: Path) -> None:
    config = chosen(Config(), ["shim"])
    assert config.runtime.handlers["shim"] == Handler(plugin="shim")
    assert config.runtime.default_handler == "shim"
    assert opened(tmp_path / "demo", config) == {"shim": "shim"}


def test_a_name_that_is_neither_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[runtime.handlers.mine]\nplugin = "runc"\n')
    assert main(["--config", str(tmp_path / "my.toml"), "demo", "--handler", "nonesuch"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("cri-bridge: no such handler 'nonesuch' (configured: crun, mine, runc; installed plugins: ")
    assert "oci" in said
    assert "runc" in said.partition("installed plugins: ")[2]


def test_a_plugin_that_is_at_fault_is_told_with_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plugins, "faults", {"mine": "its module can't be loaded"})
    with pytest.raises(ConfigError, match="plugin 'mine' can't be used: its module can't be loaded"):
        chosen(Config(), ["mine"])
