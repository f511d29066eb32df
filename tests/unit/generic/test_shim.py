"""The options of a handler with ``plugin = "shim"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pydantic
import pytest

from bridge._proto.containerd.runc.v1 import Options as RuncOptions
from bridge._proto.runtimeoptions.v1 import Options as RuntimeOptions
from bridge.errors import ConfigError
from bridge.generic.shim import ShimOptions, binary_name, settings
from bridge.host.cgroup_paths import CgroupDriver
from bridge.ports.host import HostContext, Monitor
from bridge.ports.runtime import ContainerIO, SandboxKind
from bridge.shimv2.backend import ShimBackend
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.task import Stdio


def context(root: Path, driver: CgroupDriver = CgroupDriver.CGROUPFS) -> HostContext:
    def monitor() -> Monitor:
        raise AssertionError("nobody asks it")

    return HostContext(monitor, root / "state", root / "run", root / "cache", driver)


def binary(root: Path, name: str = "containerd-shim-any-v2") -> str:
    path = root / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_binary_follows_from_the_type() -> None:
    assert binary_name("io.containerd.runc.v2") == "containerd-shim-runc-v2"
    assert binary_name("io.containerd.kata-qemu.v2") == "containerd-shim-kata-qemu-v2"
    assert binary_name("wasmtime.v1") == "containerd-shim-wasmtime-v1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime_type": "runc"}, "runtime_type"),
        ({"runtime_type": "io.containerd.x.v2", "binary_name": "crun"}, "binary_name and root"),
        ({"config_path": "/x"}, "config_path and config"),
        ({"runtime_type": "io.containerd.x.v2", "config_path": "/x", "config": "y"}, "not together"),
        ({"sandbox": "pod"}, "sandbox"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        ShimOptions.model_validate(options)


def test_a_binary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options.runtime_type: .*'containerd-shim-none-v2'"):
        settings("h", ShimOptions(runtime_type="io.containerd.none.v2"), context(tmp_path))
    with pytest.raises(ConfigError, match=r"options.path: .*'/nope'"):
        settings("h", ShimOptions(path="/nope"), context(tmp_path))


def test_runcs_shim_gets_its_own_options(tmp_path: Path) -> None:
    options = ShimOptions(path=binary(tmp_path), binary_name="crun", env={"A": "b"}, create_timeout=7.0)
    found = settings("h", options, context(tmp_path, CgroupDriver.SYSTEMD))
    assert found.options is not None
    assert found.options.type_url == "containerd.runc.v1.Options"
    told = RuncOptions.parse(found.options.value)
    assert (told.binary_name, told.root, told.systemd_cgroup, told.io_uid) == ("crun", str(tmp_path / "state/h/runc"), True, 0)
    owned = found.options_of(ContainerIO(owner=(1000, 2000)))
    assert owned is not None
    assert (RuncOptions.parse(owned.value).io_uid, RuncOptions.parse(owned.value).io_gid) == (1000, 2000)
    assert found.options_of(ContainerIO()) is found.options
    assert (found.timeouts.create, found.timeouts.start, found.handler) == (7.0, 60.0, "h")
    assert found.binary.environment()["A"] == "b"
    assert (found.kind, found.own_cgroups, found.per_container) == (SandboxKind.NAMESPACES, True, False)


@pytest.mark.parametrize(("name", "pipes"), [("", False), ("runc", False), ("/opt/runc", False), ("crun", True), ("/usr/bin/crun", True)])
def test_a_runtime_that_gives_its_streams_away_never_gets_the_hosts_null_device(tmp_path: Path, name: str, pipes: bool) -> None:
    found = settings("h", ShimOptions(path=binary(tmp_path), binary_name=name), context(tmp_path))
    null = "/dev/null"
    wanted = Stdio(null, null, null) if pipes else Stdio()
    assert found.given(Stdio()) == wanted
    assert found.given(Stdio("/in", "/out", "/err")) == Stdio("/in", "/out", "/err")
    assert found.given(Stdio(stdout="/out", terminal=True)) == Stdio(stdout="/out", terminal=True), "its streams are the terminal"
    other = settings("h", ShimOptions(path=binary(tmp_path), runtime_type="io.containerd.kata.v2"), context(tmp_path))
    assert other.given(Stdio()) == Stdio(), "a machine has a null device of its own"


def test_other_shims_get_their_configuration(tmp_path: Path) -> None:
    options = ShimOptions(runtime_type="io.containerd.any.v2", path=binary(tmp_path), config_path="/etc/any.toml", sandbox="vm")
    found = settings("h", options, context(tmp_path))
    assert found.options is not None
    assert RuntimeOptions.parse(found.options.value).config_path == "/etc/any.toml"
    assert (found.kind, found.own_cgroups) == (SandboxKind.VM, False)
    bare = settings("h", ShimOptions(runtime_type="io.containerd.any.v2", path=binary(tmp_path)), context(tmp_path))
    assert bare.options_of(ContainerIO(owner=(1, 1))) is None


def test_what_it_makes_of_specs_is_shown(tmp_path: Path) -> None:
    made = settings("h", ShimOptions(path=binary(tmp_path)), context(tmp_path))
    backend = ShimBackend(ShimRuntime(made, context(tmp_path), cast("Any", None)), cast("Any", None))
    given = {
        "annotations": {"io.kubernetes.cri.sandbox-id": "s1", "io.containerd.runc.v2.group": "another's"},
        "linux": {"resources": {"cpu": {"quota": -1, "shares": 2}}},
    }
    shown = backend.final_spec(given)
    assert shown["annotations"] == {"io.kubernetes.cri.sandbox-id": "s1", "io.containerd.runc.v2.group": "s1"}, "a pod shares one shim"
    assert shown["linux"]["resources"] == {"cpu": {"shares": 2}}, "none is what a new cgroup has"


def test_whose_driver_makes_cgroups(tmp_path: Path) -> None:
    path = binary(tmp_path)
    ours, systemd = context(tmp_path), context(tmp_path, CgroupDriver.SYSTEMD)
    assert settings("h", ShimOptions(path=path), systemd).systemd_cgroup
    assert not settings("h", ShimOptions(path=path, cgroup_driver="cgroupfs"), systemd).systemd_cgroup
    with pytest.raises(ConfigError, match=r"options\.cgroup_driver: can't be"):
        settings("h", ShimOptions(path=path, cgroup_driver="systemd"), ours)
