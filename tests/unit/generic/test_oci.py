"""Each option of ``plugin = "oci"`` has its effect on the command line, and a wrong one is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ConfigError, MonitorGone
from bridge.generic import oci
from bridge.generic.oci import OciOptions, dialect
from bridge.handlers import HandlerSettings, open_handlers
from bridge.host.cgroup_paths import CgroupDriver
from bridge.oci.cli import OciCli
from bridge.oci.dialect import Dialect, ExecCgroup, Launch, Scope, flag, switch
from bridge.oci.options import settings
from bridge.plugins import Plugins
from bridge.ports.host import HostContext, Monitor
from bridge.ports.runtime import Ability, Feature, Support


def no_monitor() -> Monitor:
    raise MonitorGone("none in this test")


@pytest.fixture
def context(tmp_path: Path) -> HostContext:
    return HostContext(no_monitor, tmp_path / "state", tmp_path, tmp_path, CgroupDriver.SYSTEMD)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "tool"
    path.touch(mode=0o755)
    return path


@pytest.fixture
def plugins() -> Plugins:
    plugins = Plugins()
    plugins.register(oci, name="oci")
    assert plugins.faults == {}
    assert plugins.runtimes == ("oci",)
    return plugins


def cli(binary: Path, context: HostContext, **given: Any) -> OciCli:
    options = OciOptions.model_validate({"path": str(binary), **given})
    return OciCli(settings("h", options, context, dialect(options)))


def test_without_options_it_is_runcs(binary: Path, context: HostContext, tmp_path: Path) -> None:
    made = cli(binary, context)
    assert made.dialect == Dialect()
    prefix = [str(binary), "--root", f"{tmp_path}/state/h", "--systemd-cgroup"]
    assert made.argv("run", "x", log=Path("/l")) == [*prefix, "--log", "/l", "--log-format", "json", "run", "x"]
    assert made.deletion("x") == [*prefix, "delete", "--force", "x"]


def test_every_word_can_be_another(binary: Path, context: HostContext, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "launch": "create",
        "global_args": ["-v"],
        "root_args": ["--state={root}"],
        "log_args": ["--messages={log}"],
        "systemd_args": [],
        "verbs": {"delete": "rm"},
        "verb_args": {"delete": ["--now", "--quiet"]},
        "flags": {"force": "-f", "pid_file": "--pidfile="},
        "exec_cgroup": "path",
        "start_exit_codes": {"42": "not-found", "43": "not-executable"},
    }
    made = cli(binary, context, **given)
    prefix = [str(binary), f"--state={tmp_path}/state/h", "-v"]
    assert made.argv("run", log=Path("/l")) == [*prefix, "--messages=/l", "run"]
    assert made.deletion("x") == [*prefix, "rm", "--now", "--quiet", "-f", "x"]
    assert made.dialect.launch is Launch.CREATE
    assert made.dialect.exec_cgroup is ExecCgroup.PATH
    assert [made.failure("run", code, ()).start_code for code in (42, 43, 44)] == [127, 126, 128]
    assert cli(binary, context, root_args=[], log_args=[], systemd_args=[]).argv("run", log=Path("/l")) == [str(binary), "run"]


def test_flags_with_a_value() -> None:
    assert flag("--pid", 7) == ["--pid", "7"]
    assert flag("--pid=", 7) == ["--pid=7"]
    assert flag("", 7) == []
    assert switch("--force") == ["--force"]
    assert switch("") == []


def test_annotations_reach_whom_they_are_for() -> None:
    spec = {"annotations": {"a": "pod's", "b": "pod's"}}
    only = Dialect(annotations={"a": "ours"})
    assert only.noted(spec, Scope.CONTAINERS)["annotations"] == {"a": "ours", "b": "pod's"}
    assert only.noted(spec, Scope.PAUSE) is spec
    assert only.noted({}, Scope.CONTAINERS) == {"annotations": {"a": "ours"}}
    options = OciOptions(path="x", annotations={"a": "ours"}, annotate=("pause", "trial"))
    assert dialect(options).noted({}, Scope.TRIAL) == {"annotations": {"a": "ours"}}
    assert dialect(options).noted(spec, Scope.CONTAINERS) is spec


def test_what_it_can_not_do_is_declared() -> None:
    there = {ability: Feature(Support.SUPPORTED) for ability in (Ability.EXEC, Ability.TTY, Ability.UPDATE, Ability.SECCOMP)}
    options = OciOptions.model_validate({"path": "x", "flags": {"console": "", "resources": ""}, "abilities": {"exec": False}})
    found = dialect(options).overruled(there)
    assert {str(ability): feature.detail for ability, feature in found.items() if feature.support is Support.UNSUPPORTED} == {
        "exec": "its handler's options say that it can't",
        "tty": "its command line has no flag for it",
        "update": "its command line has no flag for it",
    }
    assert found[Ability.SECCOMP] == there[Ability.SECCOMP]


def test_where_its_state_is(binary: Path, context: HostContext, tmp_path: Path) -> None:
    nested = cli(binary, context, state_dir="{root}/containers/{id}")
    (tmp_path / "state/h/containers/one").mkdir(parents=True)
    assert nested.containers() == ["one"]
    assert cli(binary, context, state_dir="/no/such/place/{id}").containers() == ()
    assert cli(binary, context, state_dir="/run/x/{id}.json").containers() == (), "such names are not ids"
    assert cli(binary, context, state_dir="").containers() == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"state_dir": "{name}/x"}, r"state_dir: '\{name\}/x' may name \{root\}, \{id\} alone"),
        ({"state_dir": "relative/{id}"}, r"state_dir: must begin with / or \{root\}"),
        ({"log_args": ["{root}"]}, r"log_args: '\{root\}' may name \{log\} alone"),
        ({"flags": {"pid_file": ""}}, r"options\.flags\.pid_file: String should have at least 1 character"),
        ({"flags": {"pidfile": "x"}}, r"options\.flags\.pidfile: no such option"),
        ({"verbs": {"ps": "x"}}, r"options\.verbs\.ps"),
        ({"abilities": {"flying": True}}, r"options\.abilities\.flying"),
        ({"start_exit_codes": {"x": "not-found"}}, r"options\.start_exit_codes\.x"),
        ({"pth": "x"}, r"options\.pth: no such option; did you mean 'path'"),
    ],
)
def test_wrong_options_are_named(plugins: Plugins, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.options(plugins.runtime("oci"), {"path": "x", **given})


async def test_a_missing_binary_disables_the_handler(plugins: Plugins, context: HostContext) -> None:
    given = [HandlerSettings("h", "oci", {"path": "no-such-tool", "rootless": "auto"})]
    async with open_handlers(plugins, given, default="h", context=context) as registry:
        assert "there is no executable 'no-such-tool'" in registry.states()[0].disabled_reason
