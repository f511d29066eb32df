"""The schema: defaults, path placement, handlers over their defaults, and the words that document every key."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge import daemon_settings as settings_of
from bridge.config import Config, Handler
from bridge.config_docs import default_toml, entries, markdown, show, tables, toml_value
from bridge.config_files import load, read
from bridge.errors import ConfigError
from bridge.host import facts
from bridge.host.selinux import Contexts, Mode
from bridge.streaming.server import StreamSettings


def test_defaults_are_valid_and_absolute() -> None:
    config = Config()
    assert config.server.socket == Path("/run/cri-bridge/cri-bridge.sock")
    assert config.images.root == Path("/var/lib/cri-bridge/images")
    assert set(config.runtime.handlers) == {"runc", "crun"}


def test_moving_a_root_moves_what_is_below_it() -> None:
    config = Config.model_validate({"server": {"run_dir": "/r", "state_dir": "/s"}, "monitor": {"socket": "/elsewhere/m.sock"}})
    assert config.server.socket == Path("/r/cri-bridge.sock")
    assert config.monitor.log_file == Path("/r/monitor.log")
    assert config.monitor.socket == Path("/elsewhere/m.sock")
    assert config.images.root == Path("/s/images")


def test_a_handler_is_added_and_another_changed() -> None:
    handlers = Config.model_validate(
        {"runtime": {"handlers": {"youki": {"plugin": "runc", "options": {"path": "/opt/youki"}}, "crun": {"enabled": False}}}}
    ).runtime.handlers
    assert set(handlers) == {"runc", "crun", "youki"}
    assert handlers["crun"] == Handler(plugin="runc", enabled=False, options={"path": "crun"})


@pytest.mark.parametrize("change", [{"default_handler": "kata"}, {"handlers": {"runc": {"enabled": False}}}])
def test_default_handler_must_be_there_and_enabled(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="no enabled handler is named"):
        Config.model_validate({"runtime": change})


def test_capabilities_lose_their_prefix() -> None:
    assert Config.model_validate({"security": {"capabilities": ["cap_chown", "KILL"]}}).security.capabilities == ["CHOWN", "KILL"]


def test_additional_devices_are_taken_apart() -> None:
    texts = ["/dev/fuse", "/dev/sdc:/dev/xvdc", "/dev/sdd:r", "/dev/sde:/dev/e:rw"]
    requests = [
        settings_of._device(text) for text in Config.model_validate({"runtime": {"additional_devices": texts}}).runtime.additional_devices
    ]
    assert [(one.host_path, one.container_path, one.permissions) for one in requests] == [
        ("/dev/fuse", "/dev/fuse", "rwm"),
        ("/dev/sdc", "/dev/xvdc", "rwm"),
        ("/dev/sdd", "/dev/sdd", "r"),
        ("/dev/sde", "/dev/e", "rw"),
    ]


@pytest.mark.parametrize("text", ["", "dev/fuse", "/dev/a:b", "/dev/a:/dev/b:x", "/dev/a:/dev/b:rw:", "/dev/a::rw"])
def test_a_wrong_additional_device_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="must be HOST"):
        Config.model_validate({"runtime": {"additional_devices": [text]}})


def test_an_empty_annotation_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="allowed_annotations"):
        Config.model_validate({"runtime": {"handlers": {"runc": {"allowed_annotations": [""]}}}})


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().server.log_level = "debug"


def test_every_key_says_what_it_does_and_why() -> None:
    missing = [entry.key for name, model in tables() for entry in entries(name, model) if not (entry.what and entry.why)]
    assert missing == []


def test_sample_file_uncommented_is_the_default_configuration(tmp_path: Path) -> None:
    live = []
    for line in default_toml().splitlines():
        is_doc = line.startswith("# ") or line == "#"
        live.append("" if is_doc else line.removeprefix("#"))
    path = tmp_path / "sample.toml"
    path.write_text("\n".join(live))
    config = load([path])
    assert list(config.images.registries) == ["registry.example:5000"]
    assert config.model_copy(update={"images": config.images.model_copy(update={"registries": {}})}) == Config()


def test_sample_file_as_it_is_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sample.toml"
    path.write_text(default_toml())
    assert load([path]) == Config()


def test_show_reads_back_equal_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[server]\nsocket_mode = 0o600\n[images.registries."localhost:5000"]\ninsecure = true\n'
        '[runtime.handlers.crun]\noptions = { path = "/x y", "odd key" = [1, true] }\n'
    )
    loaded = read([path])
    text = show(loaded)
    assert f"socket_mode = 0o600  # {path}" in text
    again = tmp_path / "b.toml"
    again.write_text(text)
    assert load([again]) == loaded.config


def test_markdown_lists_every_key() -> None:
    page = markdown()
    for name, model in tables():
        for entry in entries(name, model):
            assert f"| `{entry.key[-1]}` |" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3, "3"), (0.5, "0.5"), ('a"b\n', '"a\\"b\\n"'), ([1, "x"], '[1, "x"]'), ({}, "{}"), ({"a b": 1}, '{ "a b" = 1 }')],
)
def test_toml_values(value: object, text: str) -> None:
    assert toml_value(value) == text


def test_committed_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text("utf-8") == markdown(), "run: cri-bridge config default --markdown > docs/config.md"


def test_options_of_volumes_reach_core() -> None:
    host = settings_of.Host(facts.gather(), "boot", None)
    default = settings_of.core(Config(), host)
    assert (default.create_missing_volumes, default.never_created_volumes, default.shm_bytes) == (True, ("/etc/hostname",), 64 << 20)
    runtime = {"missing_mount_sources": "refuse", "refused_missing_mount_sources": ["/a"], "shm_size": 1 << 20, "volume_timeout": 3}
    changed = settings_of.core(Config.model_validate({"runtime": runtime}), host)
    assert (changed.create_missing_volumes, changed.never_created_volumes, changed.shm_bytes) == (False, ("/a",), 1 << 20)
    assert changed.volume_timeout == 3
    with pytest.raises(ValidationError, match="missing_mount_sources"):
        Config.model_validate({"runtime": {"missing_mount_sources": "maybe"}})


def test_selinux_is_used_where_it_can_be_and_demanded_only_when_told() -> None:
    contexts = Contexts("p:p:p:s0", "f:f:f:s0", "r:r:r:s0")

    def chosen(value: str, mode: Mode, found: Contexts | None) -> Contexts | None:
        return settings_of.selinux(Config.model_validate({"security": {"selinux": value}}), mode, found)

    assert chosen("auto", Mode.ENFORCING, contexts) is contexts
    assert chosen("auto", Mode.DISABLED, None) is None
    assert chosen("off", Mode.ENFORCING, contexts) is None
    assert chosen("on", Mode.PERMISSIVE, contexts) is contexts
    with pytest.raises(ConfigError, match=r"security\.selinux is on, but SELinux is disabled"):
        chosen("on", Mode.DISABLED, None)
    with pytest.raises(ConfigError, match="container-selinux"):
        chosen("on", Mode.ENFORCING, None)


@pytest.mark.parametrize(
    ("streaming", "words"),
    [
        ({"address": "node"}, "must be an IP address"),
        ({"port": 65536}, "port"),
        ({"tls_key": "/k.pem"}, "need tls_certificate"),
        ({"tls_client_authorities": "/a.pem"}, "need tls_certificate"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"idle_timeout": 0}, "idle_timeout"),
    ],
)
def test_streaming_refuses(streaming: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Config.model_validate({"streaming": streaming})


def test_streaming_reaches_its_server() -> None:
    chosen = {
        "address": "::1",
        "port": 1,
        "host": "n",
        "tls_certificate": "/c",
        "tls_key": "/k",
        "tls_client_authorities": "/a",
        "max_sessions": 7,
    }
    found = settings_of.streaming(Config.model_validate({"streaming": chosen}))
    assert found == StreamSettings("::1", 1, "n", Path("/c"), Path("/k"), Path("/a"), 7)
