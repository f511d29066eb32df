"""Specs as Kata wants them, and as its sources say what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_kata import sizing, specs
from bridge_kata.specs import Choices

from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, NamespacePaths, SandboxSpec

OCI: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/pause"], "apparmorProfile": "cri-bridge-default", "selinuxLabel": "l", "oomScoreAdj": -998},
    "root": {"path": "/shared/pause", "readonly": True},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}],
    "annotations": {"io.kubernetes.cri.container-type": "sandbox", sizing.MEMORY: "1048576", sizing.QUOTA: "50000"},
    "linux": {
        "namespaces": [{"type": "network", "path": "/run/ns/net"}, {"type": "pid"}],
        "resources": {"memory": {"limit": 1 << 30}, "cpu": {"quota": 100000, "period": 100000}, "devices": []},
        "mountLabel": "m",
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
    },
}
SPEC = SandboxSpec(
    id="a" * 64,
    name="web",
    namespace="default",
    uid="u",
    hostname="web-0",
    state_dir=Path("/run/pod"),
    namespaces=NamespacePaths(net=Path("/run/ns/net")),
    shared_pid=False,
    cgroup_parent="/kubepods/pod1",
    oci=OCI,
    sysctls={"net.core.somaxconn": "1024"},
)


def test_the_sandbox_container() -> None:
    made = specs.sandbox(SPEC, Path("/run/pod/machine/rootfs"), Choices({"io.katacontainers.config.hypervisor.default_vcpus": "2"}))
    assert made["hostname"] == "web-0"
    assert made["root"] == {"path": "/run/pod/machine/rootfs", "readonly": True}
    assert made["annotations"] == {**OCI["annotations"], "io.katacontainers.config.hypervisor.default_vcpus": "2"}
    assert made["linux"]["sysctl"] == {"net.core.somaxconn": "1024"}
    assert made["linux"]["namespaces"] == OCI["linux"]["namespaces"]
    assert made["linux"]["seccomp"] == OCI["linux"]["seccomp"]
    assert OCI["root"]["path"] == "/shared/pause", "the original is left alone"


def test_its_own_limits_are_not_the_pods_or_kata_would_count_them_twice() -> None:
    assert specs.sandbox(SPEC, Path("/r"), Choices())["linux"]["resources"] == {"cpu": {"shares": 2}}


def test_kata_learns_name_servers_and_shared_memory_from_mounts() -> None:
    mounts = {mount["destination"]: mount for mount in specs.sandbox(SPEC, Path("/r"), Choices())["mounts"]}
    assert mounts["/dev/shm"]["source"] == "/run/pod/shm"
    assert (mounts["/etc/resolv.conf"]["source"], "ro" in mounts["/etc/resolv.conf"]["options"]) == ("/run/pod/resolv.conf", True)


def test_what_a_pod_may_choose_goes_before_the_operators_settings() -> None:
    key = "io.katacontainers.config.hypervisor.default_vcpus"
    oci = {**OCI, "annotations": {**OCI["annotations"], key: "4"}}
    spec = SandboxSpec(**{**{f: getattr(SPEC, f) for f in SPEC.__slots__}, "oci": oci})
    assert specs.sandbox(spec, Path("/r"), Choices({key: "2"}))["annotations"][key] == "4"


def test_sizes_can_be_kept_from_kata() -> None:
    made = specs.sandbox(SPEC, Path("/r"), Choices(static_sizing=False))
    assert made["annotations"] == {"io.kubernetes.cri.container-type": "sandbox"}


def test_what_only_the_hosts_kernel_has_is_left_out() -> None:
    made = specs.container(OCI, Choices(), 42)
    assert made["process"] == {"args": ["/pause"], "oomScoreAdj": -998}
    assert "mountLabel" not in made["linux"]
    assert made["linux"]["seccomp"] == OCI["linux"]["seccomp"]
    assert made["linux"]["resources"] == OCI["linux"]["resources"], "a container's own limits stay"
    assert "seccomp" not in specs.container(OCI, Choices(guest_seccomp=False), 42)["linux"]


def test_a_shared_pid_namespace_is_told_by_a_path() -> None:
    oci = {**OCI, "linux": {"namespaces": [{"type": "pid", "path": SANDBOX_PID_NAMESPACE}, {"type": "mount"}]}}
    assert specs.container(oci, Choices(), 42)["linux"]["namespaces"] == [{"type": "pid", "path": "/proc/42/ns/pid"}, {"type": "mount"}]
    assert specs.container(OCI, Choices(), 42)["linux"]["namespaces"][1] == {"type": "pid"}
