"""What is tested: a handler of a configuration, a plugin by its name, with its known limits."""

from pathlib import Path

import pytest

from bridge.config import Config, Handler
from bridge.errors import ConfigError
from bridge.testing.conformance.target import read_limits, target


def test_a_configured_handler_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[runtime.handlers.mine]\nplugin = "runc"\nenabled = false\noptions = {path = "/usr/bin/mine"}\nstart_timeout = 99\n')
    found = target("mine", config=[file])
    assert found.handler == Handler(plugin="runc", options={"path": "/usr/bin/mine"}, start_timeout=99.0)
    assert found.announced is not None
    assert found.announced.name == "runc"
    assert str(found) == "mine"


def test_a_plugin_is_a_handler_where_none_is_configured() -> None:
    found = target("own", config=Config(), plugin="runc", options={"path": "crun"}, limits={"seccomp": "why"})
    assert found.handler == Handler(plugin="runc", options={"path": "crun"})
    assert found.limits == {"seccomp": "why"}


def test_what_there_is_not_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no handler 'runcc' is configured.*did you mean 'runc'"):
        target("runcc", config=Config())
    with pytest.raises(ConfigError, match=r"options\.pat: no such option; did you mean 'path'"):
        target("x", config=Config(), plugin="runc", options={"pat": "crun"})
    with pytest.raises(ConfigError, match="no plugin serves 'nobody'"):
        target("x", config=Config(), plugin="nobody")


@pytest.mark.parametrize("text", ['seccomp = "why"\n', '[limits]\nseccomp = "why"\n'])
def test_limits_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.toml").write_text(text)
    assert read_limits(tmp_path / "limits.toml") == {"seccomp": "why"}


@pytest.mark.parametrize(
    ("text", "words"), [("seccomp = 3\n", "seccomp: must be the reason"), ("limits = 3\n", "must be a table"), ("a = \n", "limits.toml: ")]
)
def test_limits_of_another_form_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_limits(tmp_path / "limits.toml")
