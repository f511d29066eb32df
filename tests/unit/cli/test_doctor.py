"""Doctor on recorded hosts: a bare one, a good one on cgroup v2, an old one on v1. Each complaint carries its remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge.cli import doctor_kernel, doctor_setup
from bridge.cli.findings import Finding, Host, State
from bridge.config import Config

V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "".join(
    f"{n} 30 0:{n} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
    for n, name in enumerate(("cpu", "memory", "pids", "cpuset", "blkio", "devices"), 31)
)


def write(root: Path, name: str, text: str = "", *, executable: bool = False) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if executable:
        path.chmod(0o755)


def host_v2(root: Path) -> Host:
    """A host where nothing is missing."""
    for name in ("mnt", "net", "ipc", "uts", "pid", "cgroup", "user"):
        link = root / "proc/self/ns" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"{name}:[1]")
        write(root, f"proc/sys/user/max_{name}_namespaces", "63000\n")
    write(root, "proc/self/mountinfo", V2)
    write(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
    write(root, "proc/sys/kernel/seccomp/actions_avail", "kill errno allow\n")
    write(root, "proc/filesystems", "nodev\tsysfs\nnodev\toverlay\n\text4\n")
    write(root, "proc/sys/net/ipv4/ip_forward", "1\n")
    write(root, "proc/sys/net/bridge/bridge-nf-call-iptables", "1\n")
    write(root, "proc/sys/fs/inotify/max_user_instances", "8192\n")
    write(root, "proc/sys/kernel/pid_max", "4194304\n")
    write(root, "proc/swaps", "Filename\tType\n")
    for name in ("usr/bin/runc", "usr/bin/crun", "usr/bin/catatonit", "opt/cni/bin/bridge", "opt/cni/bin/host-local"):
        write(root, name, executable=True)
    conf = {
        "cniVersion": "1.0.0",
        "name": "n",
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}, "capabilities": {"portMappings": True}}],
    }
    write(root, "etc/cni/net.d/10-bridge.conflist", json.dumps(conf))
    return Host(root, "6.18.1-generic", lambda name: f"/usr/bin/{name}" if (root / "usr/bin" / name).exists() else None, is_root=True)


def named(findings: Sequence[Finding], name: str) -> Finding:
    (found,) = [one for one in findings if one.name == name]
    return found


def kernel(host: Host) -> list[Finding]:
    return list(doctor_kernel.check(host))


def setup(host: Host, config: Config | None = None) -> list[Finding]:
    return [one for one in doctor_setup.check(host, config or Config()) if one.area not in ("limits", "disk")]


def test_a_good_host_has_nothing_to_mend(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    assert [one for one in kernel(host) if one.state is not State.OK] == []
    assert [one.name for one in setup(host) if one.state is not State.OK] == ["socket"]  # no server runs below tmp_path


def test_every_complaint_says_how_to_mend_it(tmp_path: Path) -> None:
    bare = Host(tmp_path, "4.19.0", lambda name: None, is_root=False)
    complaints = [one for one in [*kernel(bare), *doctor_setup.check(bare, Config())] if one.state is not State.OK]
    assert len(complaints) > 15
    assert [one for one in complaints if not one.mend] == []


def test_old_kernel_loses_features_one_by_one(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    findings = kernel(Host(host.root, "5.10.0-28-amd64", host.find, is_root=True))
    assert named(findings, "pidfds").state is State.OK
    assert named(findings, "cgroup.kill").state is State.ADVICE
    assert "5.14" in named(findings, "cgroup.kill").mend
    assert named(kernel(Host(host.root, "5.4.0", host.find, is_root=True)), "pidfds").state is State.MISSING


def test_v1_host_without_hugetlb_is_told_about_crun(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "proc/self/mountinfo", V1)
    findings = kernel(host)
    assert named(findings, "hugetlb").state is State.ADVICE
    assert "crun" in named(findings, "hugetlb").detail
    assert "-o hugetlb" in named(findings, "hugetlb").mend
    assert named(findings, "io").state is State.OK  # blkio on v1
    assert named(findings, "mode").detail.startswith("v1:")


def test_missing_controller_on_v2(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "sys/fs/cgroup/cgroup.controllers", "cpu io pids\n")
    found = named(kernel(host), "memory")
    assert found.state is State.MISSING
    assert "+memory" in found.mend


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "proc/self/mountinfo", "")
    assert named(kernel(host), "hierarchies").state is State.MISSING


def test_forbidden_namespaces(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "proc/sys/user/max_net_namespaces", "0\n")
    assert named(kernel(host), "net namespaces").mend == "sysctl -w user.max_net_namespaces=10000"


def test_a_null_device_that_was_given_away(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    assert not [one for one in kernel(host) if one.name == "/dev/null"], "a host without one has nothing to mend"
    write(tmp_path, "dev/null")
    (tmp_path / "dev/null").chmod(0o600)
    found = named(kernel(host), "/dev/null")
    assert (found.state, found.mend) == (State.ADVICE, "chown 0:0 /dev/null && chmod 666 /dev/null")
    assert "mode 0600" in found.detail


@pytest.mark.parametrize(("gone", "state"), [("runc", State.MISSING), ("crun", State.ADVICE)])
def test_a_missing_runtime_counts_if_it_is_the_default(tmp_path: Path, gone: str, state: State) -> None:
    host = host_v2(tmp_path)
    (tmp_path / "usr/bin" / gone).unlink()
    found = named(setup(host), gone)
    assert found.state is state
    assert found.mend == f"apt-get install {gone}"


def test_runtime_by_absolute_path(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    config = Config.model_validate({"runtime": {"handlers": {"youki": {"plugin": "runc", "options": {"path": "/opt/youki"}}}}})
    assert named(setup(host, config), "youki").state is State.ADVICE
    write(tmp_path, "opt/youki", executable=True)
    assert named(setup(host, config), "youki").state is State.OK


def test_cni_without_configuration_and_with_a_missing_plugin(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    (tmp_path / "opt/cni/bin/host-local").unlink()
    assert named(setup(host), "CNI plugin host-local").state is State.MISSING
    (tmp_path / "etc/cni/net.d/10-bridge.conflist").unlink()
    assert named(setup(host), "CNI configuration").state is State.MISSING


def test_host_ports_that_no_plugin_maps(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    path = "etc/cni/net.d/10-bridge.conflist"
    for plugin, state in (
        ({"type": "bridge"}, State.ADVICE),
        ({"type": "portmap", "capabilities": {"portMappings": False}}, State.ADVICE),
        ({"type": "portmap", "capabilities": {"portMappings": True}}, State.OK),
        ({"type": "cilium-cni"}, State.OK),
    ):
        write(tmp_path, path, json.dumps({"plugins": [plugin]}))
        assert named(setup(host), "host ports").state is state, plugin


@pytest.mark.parametrize("text", ["not json", "[]", '{"plugins": [{}]}', '{"plugins": 3}'])
def test_a_broken_cni_file_is_named_and_the_next_is_used(tmp_path: Path, text: str) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "etc/cni/net.d/00-broken.conflist", text)
    findings = setup(host)
    assert named(findings, "00-broken.conflist").state is State.ADVICE
    assert named(findings, "CNI configuration").state is State.OK


def test_portmap_needs_iptables(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "etc/cni/net.d/10-bridge.conflist", '{"plugins": [{"type": "portmap"}]}')
    write(tmp_path, "opt/cni/bin/portmap", executable=True)
    assert named(setup(host), "iptables").state is State.MISSING
    write(tmp_path, "usr/sbin/nft", executable=True)
    assert named(setup(host), "iptables").detail == "/usr/sbin/nft"


def test_no_pause_binary(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    (tmp_path / "usr/bin/catatonit").unlink()
    assert named(setup(host), "pause binary").state is State.ADVICE


def test_swap_and_few_pids(tmp_path: Path) -> None:
    host = host_v2(tmp_path)
    write(tmp_path, "proc/swaps", "Filename\tType\n/swapfile\tfile\n")
    write(tmp_path, "proc/sys/kernel/pid_max", "32768\n")
    findings = list(doctor_setup.check(host, Config()))
    assert named(findings, "swap").state is State.ADVICE
    assert named(findings, "pid_max").state is State.ADVICE


def test_unreadable_release() -> None:
    assert Host(release="weird").kernel() == (0, 0)


def test_streams_on_the_network_need_tls(tmp_path: Path) -> None:
    host, certificate = host_v2(tmp_path), "/etc/cri-bridge/tls.pem"
    assert named(setup(host), "streams").state is State.OK
    open_wide = Config.model_validate({"streaming": {"address": "192.0.2.1"}})
    assert named(setup(host, open_wide), "streams").state is State.ADVICE
    safe = Config.model_validate({"streaming": {"address": "192.0.2.1", "tls_certificate": certificate}})
    assert named(setup(host, safe), "streams").state is State.OK
