"""The command as a person uses it: verbs, exit codes, and what errors look like."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.__main__ import main
from bridge.config import Config
from bridge.config_files import load


def config_file(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n{text}')
    return path


def test_without_verb_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: cri-bridge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--help"], ["serve", "--help"], ["image", "import", "--help"], ["config", "--help"], ["demo", "--help"]]
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert "usage: cri-bridge" in capsys.readouterr().out


def test_config_default_is_a_valid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "default"]) == 0
    (tmp_path / "default.toml").write_text(capsys.readouterr().out)
    assert load([tmp_path / "default.toml"]) == Config()


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file(tmp_path)), "config", "check"]) == 0
    assert "config.toml" in capsys.readouterr().out
    assert main(["--config", str(config_file(tmp_path, "sokcet = 1\nlog_level = 3\n")), "config", "check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cri-bridge: ") for line in lines)
    assert any("did you mean server.socket?" in line for line in lines)


def test_config_check_judges_plugins_and_their_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = """
[runtime.handlers.mine]
plugin = "runc"
options = { path = "/nowhere/mine", flagz = {} }

[runtime.handlers.typo]
plugin = "rnc"

[runtime.handlers.later]
plugin = "not-installed-yet"
enabled = false
"""
    path = config_file(tmp_path, wrong)
    assert main(["--config", str(path), "config", "check"]) == 1
    options, plugin = capsys.readouterr().err.splitlines()
    assert options.startswith(f"cri-bridge: {path}: runtime.handlers.mine: options.flagz: no such option; ")
    assert plugin.startswith(f"cri-bridge: {path}: runtime.handlers.typo: plugin: no plugin serves 'rnc' (there are: ")
    assert plugin.endswith("did you mean 'runc'?")


def test_config_check_opens_no_handler_and_blames_no_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(tmp_path, '[runtime.handlers.mine]\nplugin = "runc"\noptions.path = "/nowhere/mine"\n')
    assert main(["--config", str(path), "config", "check"]) == 0
    monkeypatch.setattr("bridge.plugins.metadata.entry_points", lambda group: [])  # as where the plugin runc is not installed
    assert main(["--config", str(config_file(tmp_path)), "config", "check"]) == 0
    assert main(["--config", str(config_file(tmp_path, "[runtime.handlers.crun]\nenabled = true\n")), "config", "check"]) == 1
    assert "runtime.handlers.crun: plugin: no plugin serves 'runc'" in capsys.readouterr().err


def test_config_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file(tmp_path)), "config", "show", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["server"]["socket"] == f"{tmp_path}/run/cri-bridge.sock"


@pytest.mark.parametrize("words", [["handlers"], ["image", "list"], ["image", "pull", "busybox"], ["trace", "abc"]])
def test_no_server_says_which_socket_and_what_to_do(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file(tmp_path)), *words]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/run/cri-bridge.sock" in said
    assert "cri-bridge serve" in said


def test_another_socket_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["handlers", "--socket", f"{tmp_path}/other.sock"]) == 1
    assert f"{tmp_path}/other.sock" in capsys.readouterr().err


def test_doctor_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--config", str(config_file(tmp_path)), "doctor", "-o", "json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["missing"] else 0)
    assert {"area", "name", "state", "detail", "mend"} == set(report["findings"][0])


def test_doctor_sees_a_server_that_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/run/cri-bridge.sock")
        listener.listen()
        main(["--config", str(config_file(tmp_path)), "doctor", "--all"])
    assert "accepts connections" in capsys.readouterr().out


def test_output_into_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m bridge config default | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)})
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_demo_without_root_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["demo"]) == 1
    assert "needs root" in capsys.readouterr().err
