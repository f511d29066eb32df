"""Reading files: order, merging, origins, and error messages that say where and what instead."""

from pathlib import Path

import pytest

from bridge import config_files
from bridge.config import Config
from bridge.config_files import load, nearest, read
from bridge.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_files_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_files, "DEFAULT_PATHS", (tmp_path / "none.toml", tmp_path / "none.d"))
    assert load() == Config()


def test_later_files_override_and_tables_merge(tmp_path: Path) -> None:
    first = write(tmp_path / "config.toml", '[network]\nbin_dirs = ["/a", "/b"]\nplugin_timeout = 5\n[server]\nlog_level = "debug"\n')
    write(tmp_path / "conf.d" / "20-b.toml", "[network]\nplugin_timeout = 7\n")
    write(tmp_path / "conf.d" / "10-a.toml", '[network]\nplugin_timeout = 6\nbin_dirs = ["/c"]\n')
    write(tmp_path / "conf.d" / "ignored.txt", "not toml")
    loaded = read([first, tmp_path / "conf.d"])
    assert loaded.config.network.plugin_timeout == 7
    assert [str(path) for path in loaded.config.network.bin_dirs] == ["/c"]
    assert loaded.config.server.log_level == "debug"
    assert [path.name for path in loaded.files] == ["config.toml", "10-a.toml", "20-b.toml"]
    assert loaded.origins["network", "plugin_timeout"].name == "20-b.toml"
    assert loaded.origins["network", "bin_dirs"].name == "10-a.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[server]\nsokcet = "/x"', "server.sokcet: unknown key; did you mean server.socket?"),
        ('[server]\nconf_dir = "/x"', "server.conf_dir: unknown key; did you mean network.conf_dir?"),
        ("[server]\nqqqqq = 1", "server.qqqqq: unknown key; there are: socket, socket_mode,"),
        ("[netwrok]\n", "netwrok: unknown key; did you mean network?"),
        (
            "[runtime.handlers.crun]\noptoins = {}",
            "runtime.handlers.crun.optoins: unknown key; did you mean runtime.handlers.crun.options?",
        ),
        ('[images.registries."a:1"]\ninsecur = true', 'did you mean images.registries."a:1".insecure?'),
        ("[runtime.handlers.kata]\n", "runtime.handlers.kata.plugin: required, but not set"),
        ("[server]\nshutdown_timeout = 0", "server.shutdown_timeout: should be greater than 0, not 0"),
        ('[server]\nlog_level = "loud"', "server.log_level: should be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        ('[server]\nstate_dir = "rel"', "server.state_dir: must be an absolute path, not 'rel'"),
        ('[runtime]\ndefault_handler = "kata"', "there are: crun, runc"),
        ("server = 3", "server: should be a valid dictionary"),
        ("[server\n", "not TOML: "),
    ],
)
def test_errors_name_the_file_the_key_and_the_way_out(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(ConfigError) as caught:
        load([path])
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.toml", '[server]\nlog_level = "loud"\nx1 = 1\n[monitor]\nstart_timeout = -1\n')
    with pytest.raises(ConfigError) as caught:
        load([path])
    assert len(str(caught.value).splitlines()) == 3


def test_the_file_that_is_blamed_is_the_one_that_said_it(tmp_path: Path) -> None:
    good = write(tmp_path / "1.toml", '[server]\nlog_level = "info"\n')
    bad = write(tmp_path / "2.toml", '[server]\nlog_level = "loud"\n')
    with pytest.raises(ConfigError, match=f"^{bad}: server.log_level"):
        load([good, bad])


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load([tmp_path / "none.toml"])
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load([tmp_path / "latin.toml"])


def test_nearest_gives_up_on_nonsense() -> None:
    assert nearest(("server", "zzzzzzzz")) is None
