from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bridge_runc
import pytest
from bridge_runc.options import RuncOptions

from bridge.errors import ConfigError, MonitorGone
from bridge.handlers import HandlerSettings, open_handlers
from bridge.host.cgroup_paths import CgroupDriver
from bridge.oci.options import settings
from bridge.plugins import Plugins
from bridge.ports.host import HostContext, Monitor, RuntimeTimeouts


def no_monitor() -> Monitor:
    raise MonitorGone("none in this test")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostContext:
    binary = tmp_path / "bin/runc"
    binary.parent.mkdir()
    binary.write_text('#!/bin/sh\n[ "$3" = features ] && echo {} || echo fake version 1\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:/usr/bin:/bin")
    return HostContext(no_monitor, tmp_path / "state", tmp_path, tmp_path, CgroupDriver.CGROUPFS)


@pytest.fixture
def plugins() -> Plugins:
    plugins = Plugins()
    plugins.register(bridge_runc, name="runc")
    assert plugins.faults == {}
    return plugins


def test_defaults(context: HostContext, tmp_path: Path) -> None:
    made = settings("h", RuncOptions(), context)
    assert (made.path, made.root, made.systemd_cgroup) == (tmp_path / "bin/runc", tmp_path / "state/h", False)
    assert made.timeouts == context.timeouts
    assert made.env["PATH"].startswith(str(tmp_path))


def test_every_option_has_its_effect(context: HostContext, tmp_path: Path) -> None:
    options = RuncOptions(
        path=str(tmp_path / "bin/runc"),
        root=Path("/r"),
        cgroup_driver="systemd",
        global_args=("--debug",),
        run_args=("--no-pivot",),
        env={"A": "b"},
        start_timeout=1,
        exec_timeout=2,
        delete_timeout=3,
    )
    made = settings("h", options, replace(context, cgroup_driver=CgroupDriver.SYSTEMD))
    assert (made.root, made.systemd_cgroup, made.global_args, made.run_args) == (Path("/r"), True, ("--debug",), ("--no-pivot",))
    assert made.env["A"] == "b"
    assert made.timeouts == RuntimeTimeouts(start=1, exec=2, delete=3)


def test_whose_driver_makes_cgroups(context: HostContext) -> None:
    systemd = replace(context, cgroup_driver=CgroupDriver.SYSTEMD)
    assert settings("h", RuncOptions(), systemd).systemd_cgroup
    assert not settings("h", RuncOptions(cgroup_driver="cgroupfs"), systemd).systemd_cgroup
    with pytest.raises(ConfigError, match=r"options\.cgroup_driver: can't be \"systemd\" where runtime\.cgroup_driver is \"cgroupfs\""):
        settings("h", RuncOptions(cgroup_driver="systemd"), context)


@pytest.mark.parametrize("path", ["no-such-runtime", "/no/such/runtime", "./runc"])
def test_a_binary_that_is_not_there(context: HostContext, path: str) -> None:
    with pytest.raises(ConfigError, match=r"options\.path: there is no executable"):
        settings("h", RuncOptions(path=path), context)


async def test_a_missing_binary_disables_its_handler_alone(context: HostContext, plugins: Plugins) -> None:
    handlers = [HandlerSettings("runc", "runc"), HandlerSettings("crun", "runc", {"path": "no-such-crun"})]
    async with open_handlers(plugins, handlers, default="runc", context=context) as registry:
        states = {state.name: state for state in registry.states()}
        assert states["runc"].features is not None
        assert states["runc"].features.version == "fake version 1"
        assert "no executable 'no-such-crun'" in states["crun"].disabled_reason


async def test_a_mistyped_option_names_the_right_one(context: HostContext, plugins: Plugins) -> None:
    async with open_handlers(plugins, [HandlerSettings("h", "runc", {"pth": "x"})], default="h", context=context) as registry:
        assert "did you mean 'path'" in registry.states()[0].disabled_reason
