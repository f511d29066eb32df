"""Which annotations steer Kata: none that reaches the host passes by default, and refusals name each."""

from __future__ import annotations

import pytest
from bridge_kata import steering
from bridge_kata.steering import SAFE, permitted

from bridge.errors import Denied

TOP = "io.katacontainers.config"
DANGEROUS = [
    "hypervisor.path",
    "hypervisor.jailer_path",
    "hypervisor.kernel",
    "hypervisor.kernel_params",
    "hypervisor.image",
    "hypervisor.initrd",
    "hypervisor.firmware",
    "hypervisor.virtio_fs_daemon",
    "hypervisor.virtio_fs_extra_args",
    "hypervisor.entropy_source",
    "hypervisor.file_mem_backend",
    "hypervisor.guest_hook_path",
    "hypervisor.vhost_user_store_path",
    "hypervisor.machine_accelerators",
    "hypervisor.enable_iommu",
    "hypervisor.rootless",
    "hypervisor.cold_plug_vfio",
    "hypervisor.shared_fs",
    "runtime.disable_guest_seccomp",
    "runtime.disable_new_netns",
    "runtime.sandbox_cgroup_only",
    "runtime.sandbox_bind_mounts",
    "runtime.experimental",
    "runtime.enable_pprof",
    "runtime.internetworking_model",
    "runtime.vfio_mode",
    "runtime.name",
    "runtime.hypervisor_name",
    "agent.kernel_modules",
    "agent.enable_tracing",
]


@pytest.mark.parametrize("key", DANGEROUS)
def test_what_reaches_beyond_the_guest_needs_the_operator(key: str) -> None:
    assert not permitted(SAFE, f"{TOP}.{key}")


@pytest.mark.parametrize("key", ["hypervisor.default_vcpus", "hypervisor.default_memory", "agent.policy", "agent.cdh_api_timeout_ms"])
def test_what_changes_the_guest_alone_passes(key: str) -> None:
    assert permitted(SAFE, f"{TOP}.{key}")


def test_no_safe_prefix_is_the_beginning_of_a_known_dangerous_name() -> None:
    names = [f"{TOP}.{key}" for key in DANGEROUS]
    assert [(safe, name) for safe in SAFE for name in names if name.startswith(safe)] == []


def test_the_operators_settings_in_katas_words() -> None:
    found = steering.chosen("hypervisor", {"default_vcpus": 2, "enable_iommu": True, "kernel_params": "a=b", "share": 1.5})
    assert found == {
        f"{TOP}.hypervisor.default_vcpus": "2",
        f"{TOP}.hypervisor.enable_iommu": "true",
        f"{TOP}.hypervisor.kernel_params": "a=b",
        f"{TOP}.hypervisor.share": "1.5",
    }


def test_a_refusal_names_each() -> None:
    asked = {f"{TOP}.hypervisor.path": "/bin/sh", f"{TOP}.agent.kernel_modules": "x", f"{TOP}.hypervisor.default_vcpus": "2", "mine": "1"}
    passed = {f"{TOP}.hypervisor.default_vcpus": "2"}
    with pytest.raises(Denied) as caught:
        steering.refuse_withheld(asked, passed, "runtime.handlers.kata.options.allowed_annotations")
    assert str(caught.value) == (
        f"config.annotations['{TOP}.agent.kernel_modules'], config.annotations['{TOP}.hypervisor.path']: "
        "not in runtime.handlers.kata.options.allowed_annotations, and refuse_other_annotations is set"
    )
    steering.refuse_withheld(passed, passed, "x")


@pytest.mark.parametrize(
    ("enabled", "refused"),
    [
        ([], ["default_vcpus", "kernel_params"]),
        (["kernel_params"], ["default_vcpus"]),
        (["default_vcpus", "kernel_params"], []),
        ([".*"], []),  # an expression is Kata's to judge
        (["kernel"], ["default_vcpus"]),  # found anywhere in the name
    ],
)
def test_what_katas_configuration_does_not_enable(enabled: list[str], refused: list[str]) -> None:
    wanted = [f"{TOP}.hypervisor.{key}" for key in ("default_vcpus", "kernel_params")] + [f"{TOP}.agent.policy"]
    assert steering.not_enabled(wanted, enabled) == refused
