"""Whether Kata can work here: its configuration, its version, the host's devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from bridge_kata import probe
from bridge_kata.limits import limits
from bridge_kata.options import KataOptions

from bridge.errors import ConfigError, RuntimeFailed, Unsupported
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support
from bridge.testing.conformance import catalogue

QEMU = """
[hypervisor.qemu]
enable_annotations = ["enable_iommu", "kernel_params"]
[runtime]
disable_guest_seccomp = true
static_sandbox_resource_mgmt = true
"""
RUST = """
[hypervisor.qemu]
enable_annotations = []
[hypervisor.dragonball]
enable_annotations = ["default_vcpus"]
[runtime]
hypervisor_name = "dragonball"
"""
PATH = Path("/etc/kata/configuration.toml")


def test_what_matters_of_a_configuration() -> None:
    found = probe.parse_config(PATH, QEMU)
    assert (found.hypervisor, found.enabled) == ("qemu", ("enable_iommu", "kernel_params"))
    assert (found.guest_seccomp, found.static_sizing) == (False, True)


def test_the_rust_runtime_names_its_hypervisor() -> None:
    found = probe.parse_config(PATH, RUST)
    assert (found.hypervisor, found.enabled, found.guest_seccomp) == ("dragonball", ("default_vcpus",), True)


def test_a_configuration_that_says_nothing() -> None:
    assert probe.parse_config(PATH, "") == probe.KataConfig(PATH)


@pytest.mark.parametrize(("text", "words"), [("[[", "is not TOML"), (None, "can't be read: No such file"), (b"\xff", "it is not text")])
async def test_configurations_that_cannot_be_used(tmp_path: Path, text: str | bytes | None, words: str) -> None:
    path = tmp_path / "configuration.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=rf"options\.config_path: {path} .*{words}"):
        await probe.read_config(path)


async def test_devices(tmp_path: Path) -> None:
    await probe.check_devices([Path("/dev/null")])
    with pytest.raises(Unsupported, match=r"required_devices: .*/kvm can't be opened: No such file.*; is virtualization enabled"):
        await probe.check_devices([Path("/dev/null"), tmp_path / "kvm"])


def binary(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "containerd-shim-kata-v2"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def test_the_version_line(tmp_path: Path) -> None:
    path = binary(tmp_path, "echo 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0'")
    text = await probe.version("kata", path, {"PATH": "/bin"}, 10.0)
    assert text.endswith("version: 4.1.0")
    probe.check_generation("auto", text)
    probe.check_generation("rust", text)
    with pytest.raises(ConfigError, match=r"generation is 'go'.*is the rust shim"):
        probe.check_generation("go", text)


async def test_a_binary_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="no such hypervisor"):
        await probe.version("kata", binary(tmp_path, "echo no such hypervisor >&2; exit 3"), {"PATH": "/bin"}, 10.0)


def test_features_of_a_guest() -> None:
    inner = RuntimeFeatures("", "/kata", {Ability.STATS: Feature(Support.SUPPORTED, "asked of the shim")})
    found = probe.features(inner, "Kata 4", ["io.katacontainers.x"], probe.parse_config(PATH, QEMU))
    assert (found.version, found.path, found.annotations) == ("Kata 4", "/kata", ("io.katacontainers.x",))
    assert found.has(Ability.EXEC)
    assert found.has(Ability.STATS)
    assert found.lacks(Ability.HOST_NETWORK)
    assert found.lacks(Ability.USER_NAMESPACES)
    assert found.lacks(Ability.SECCOMP) == f"disable_guest_seccomp in {PATH} is set, so that profiles are not passed to the guest"
    assert found.abilities[Ability.PORT_FORWARD].support is Support.EMULATED
    assert probe.features(inner, "Kata 4", [], None).has(Ability.SECCOMP)


def test_limits_that_conform_knows_of() -> None:
    names = {each.name for each in catalogue.every()}
    real, stand_in = limits(KataOptions(), "version: 3.2.0, commit: abc"), limits(KataOptions(), "version: 4.1.0, commit: fake")
    assert set(real) <= names
    assert set(real) - set(stand_in) == {"port-forward-to-localhost"}
    assert all(real.values())
