"""The plugin without a sandbox: options and specs."""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import bridge_gvisor
import pytest
from bridge_gvisor import forwarding, hiding
from bridge_gvisor import spec as specs
from bridge_gvisor.backend import GvisorBackend
from bridge_gvisor.handler import settings
from bridge_gvisor.host import GvisorHost
from bridge_gvisor.options import GvisorOptions
from bridge_gvisor.runsc import Runsc, RunscSettings
from bridge_gvisor.sandbox import GvisorSandbox

from bridge.errors import ConfigError, MonitorGone, Unsupported
from bridge.host import cgroups, netdial
from bridge.host.cgroup_paths import CgroupDriver
from bridge.plugins import Plugins
from bridge.ports.host import HostContext, Monitor
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, NamespacePaths, SandboxSpec


def no_monitor() -> Monitor:
    raise MonitorGone("none in this test")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostContext:
    binary = tmp_path / "bin/runsc"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:/usr/bin:/bin")
    return HostContext(no_monitor, tmp_path / "state", tmp_path, tmp_path, CgroupDriver.CGROUPFS)


def test_it_announces_its_runtime() -> None:
    plugins = Plugins()
    plugins.register(bridge_gvisor, name="gvisor")
    assert plugins.faults == {}
    assert plugins.runtimes == ("gvisor",)


def test_defaults(context: HostContext, tmp_path: Path) -> None:
    made = settings("h", GvisorOptions(), context)
    assert (made.path, made.root, made.systemd_cgroup) == (tmp_path / "bin/runsc", tmp_path / "state/h", False)
    assert (made.network, made.flags, made.seccomp) == ("sandbox", (), False), "the host's stack is for who asks for it"
    assert made.timeouts == context.timeouts
    argv = Runsc(made).argv("start", "x", log=Path("/l"))
    assert argv[1:] == ["--root", str(made.root), "--network=sandbox", "--net-raw", "--log", "/l", "--log-format", "json", "start", "x"]


def test_every_option_has_its_effect(context: HostContext, tmp_path: Path) -> None:
    options = GvisorOptions(
        path=str(tmp_path / "bin/runsc"),
        root=Path("/r"),
        platform="kvm",
        network="none",
        overlay="all:memory",
        rootless=True,
        oci_seccomp=True,
        debug_log=Path("/d"),
        extra_args=("--directfs=false",),
        env={"A": "b"},
        cgroup_driver="systemd",
        stats_interval=3,
        start_timeout=1,
        exec_timeout=2,
        delete_timeout=4,
    )
    with pytest.raises(ConfigError, match=r"options\.cgroup_driver: can't be"):
        settings("h", options, context)
    made = settings("h", options, replace(context, cgroup_driver=CgroupDriver.SYSTEMD))
    assert (made.root, made.network, made.systemd_cgroup, made.seccomp, made.stats_interval) == (Path("/r"), "none", True, True, 3)
    assert made.flags == (
        *("--platform=kvm", "--overlay2=all:memory", "--rootless", "--oci-seccomp"),
        *("--debug", "--debug-log=/d/", "--directfs=false"),
    )
    assert made.env["A"] == "b"
    timeouts = made.timeouts
    assert (timeouts.create, timeouts.start, timeouts.exec, timeouts.delete) == (1, 1, 2, 4)
    assert Runsc(made).argv("x")[-2:] == ["--systemd-cgroup", "x"]


@pytest.mark.parametrize(("path", "said"), [("nowhere", "no executable 'nowhere' in"), ("./runsc", "no executable")])
def test_a_binary_that_is_not_there(context: HostContext, path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"options\.path: .*{said}"):
        settings("h", GvisorOptions(path=path), context)


def oci(**linux: Any) -> dict[str, Any]:
    return {
        "process": {"args": ["x"], "apparmorProfile": "p", "selinuxLabel": "l"},
        "annotations": {"a": "b"},
        "linux": {
            "namespaces": [{"type": "network", "path": "/n"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "pid"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "resources": {"devices": [{"allow": False}], "cpu": {"shares": 2}},
            "rootfsPropagation": "rslave",
            **linux,
        },
    }


def sandbox(**changes: Any) -> SandboxSpec:
    base: dict[str, Any] = {
        **{"id": "s1", "name": "web", "namespace": "default", "uid": "u", "hostname": "web", "state_dir": Path("/s")},
        **{"namespaces": NamespacePaths(net=Path("/n")), "shared_pid": False, "cgroup_parent": "/pods/web", "oci": oci()},
    }
    return SandboxSpec(**{**base, **changes})


def test_the_sandbox_is_put_into_the_pods_cgroup() -> None:
    made = specs.of_sandbox(sandbox(cgroup="/pods/web"), systemd_cgroup=False, seccomp=False, unified=False)
    assert made["annotations"] == {
        "a": "b",
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": "s1",
        "dev.gvisor.spec.cgroup-parent": "/pods/web",
    }
    assert made["linux"]["resources"] == {}, "the pod's cgroup has the limits, and may be given others"


@pytest.mark.parametrize("unified", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("cgroup", "systemd", "path"),
    [
        ("/kubepods.slice/kubepods-pod7.slice", True, "kubepods-pod7.slice:cri-bridge-sandbox:s1"),
        ("/pods/web", False, "/pods/web/cri-bridge-sandbox-s1"),
    ],
)
def test_where_systemd_or_the_kernel_keeps_processes_out_of_the_pods_cgroup_it_is_below_that(
    unified: bool, cgroup: str, systemd: bool, path: str
) -> None:
    given = sandbox(cgroup=cgroup, oci=oci(cgroupsPath=path, resources={"memory": {"limit": 1 << 30}}))
    made = specs.of_sandbox(given, systemd_cgroup=systemd, seccomp=False, unified=unified)
    assert made["linux"]["cgroupsPath"] == path
    assert made["linux"]["resources"] == ({"memory": {"limit": 1 << 30}} if systemd else {}), "a slice may be nobody's who limits it"
    assert ("dev.gvisor.spec.cgroup-parent" in made["annotations"]) is (not systemd and not unified)


def test_a_pod_without_a_cgroup_has_its_limits_on_the_sandbox() -> None:
    given = sandbox(oci=oci(resources={"memory": {"limit": 1 << 30}}))
    made = specs.of_sandbox(given, systemd_cgroup=False, seccomp=False, unified=True)
    assert made["linux"]["resources"] == {"memory": {"limit": 1 << 30}}
    assert "dev.gvisor.spec.cgroup-parent" not in made["annotations"]


@pytest.mark.parametrize("seccomp", [False, True])
def test_what_runsc_has_no_use_for_is_left_out(seccomp: bool) -> None:
    given = oci()
    made = specs.of_container(given, "c1", "s1", seccomp=seccomp)
    assert made["process"] == {"args": ["x"]}
    assert made["linux"]["resources"] == {"cpu": {"shares": 2}}
    assert ("seccomp" in made["linux"]) is seccomp
    assert "rootfsPropagation" not in made["linux"]
    assert {"type": "cgroup"} not in made["linux"]["namespaces"]
    assert given == oci(), "the server's own is left alone"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"type": "pid"}, [{"type": "pid", "path": "@container/c1"}]),
        ({"type": "pid", "path": SANDBOX_PID_NAMESPACE}, []),
        ({"type": "pid", "path": "@container/c0"}, [{"type": "pid", "path": "@container/c0"}]),
    ],
)
def test_pid_namespaces(given: dict[str, str], made: list[dict[str, str]]) -> None:
    found = specs.of_container(oci(namespaces=[given]), "c1", "s1", seccomp=False)
    assert found["linux"]["namespaces"] == made
    assert found["annotations"]["io.kubernetes.cri.container-type"] == "container"
    assert found["annotations"]["io.kubernetes.cri.sandbox-id"] == "s1"


async def test_a_pod_on_the_hosts_stack_is_reached_without_runsc() -> None:
    """runsc's own way ends a connection with the first of its halves, so a client that has said all would lose the answer."""
    made = RunscSettings("h", Path("/x"), Path("/y"), network="host")
    host = cast("GvisorHost", SimpleNamespace(verbs=frozenset({forwarding.VERB}), runsc=Runsc(made)))
    spec = cast("SandboxSpec", SimpleNamespace(ips=("192.0.2.1",)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with await forwarding.connect(host, spec, netdial.Dialer(None), port) as made_socket:
            assert made_socket.getpeername() == ("127.0.0.1", port)


def hidden(root: Path, *, masked: list[str] | None = None, readonly: list[str] | None = None) -> dict[str, Any]:
    mounts = [{"destination": "/vol", "type": "bind", "source": "/x", "options": []}]
    linux = {"maskedPaths": masked or [], "readonlyPaths": readonly or []}
    return {"root": {"path": str(root)}, "mounts": mounts, "linux": linux}


def test_hidden_paths_become_mounts(tmp_path: Path) -> None:
    root, bundle = tmp_path / "rootfs", tmp_path / "bundle"
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/secret").write_text("s")
    bundle.mkdir()
    masked = ["/proc/kcore", "/etc/deep", "/etc/secret", "/nowhere", "/etc/secret/below"]
    found = hiding.with_mounts(hidden(root, masked=masked, readonly=["/sys/x", "/etc"]), bundle)
    assert found["linux"] == {}
    assert [(mount["destination"], mount["type"], mount["source"]) for mount in found["mounts"][1:]] == [
        ("/etc", "bind", str(root / "etc")),
        ("/etc/deep", "tmpfs", "tmpfs"),
        ("/etc/secret", "bind", str(bundle / "masked")),
    ]
    assert all("ro" in mount["options"] for mount in found["mounts"][1:])
    assert (bundle / "masked").read_bytes() == b""


@pytest.mark.parametrize(("path", "why"), [("/vol/x", "on a volume"), ("/link/x", "symbolic link"), ("/link", "symbolic link")])
def test_what_cannot_be_hidden_is_refused(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/x").touch()
    (tmp_path / "link").symlink_to("dir")
    with pytest.raises(Unsupported, match=rf"masked_paths: .*{why}"):
        hiding.with_mounts(hidden(tmp_path, masked=[path]), tmp_path)


@pytest.mark.parametrize(("uid", "ambient", "left"), [(0, [], ["CAP_CHOWN"]), (1000, [], []), (1000, ["CAP_KILL"], ["CAP_KILL"])])
def test_users_other_than_root_have_the_capabilities_that_linux_leaves_them(uid: int, ambient: list[str], left: list[str]) -> None:
    sets = {name: ["CAP_CHOWN"] for name in ("bounding", "effective", "permitted")}
    given = {"user": {"uid": uid}, "capabilities": {**sets, "ambient": ambient}, "args": ["x"], "apparmorProfile": "p"}
    made = specs.process(given)
    assert made["capabilities"] == {"bounding": ["CAP_CHOWN"], "effective": left, "permitted": left, "ambient": ambient}
    assert "apparmorProfile" not in made
    assert given["capabilities"] == {**sets, "ambient": ambient}, "what was given is not changed"


def test_capabilities_that_an_older_runsc_does_not_know() -> None:
    sets = {"bounding": ["CAP_BPF", "CAP_CHOWN", "CAP_PERFMON"], "ambient": ["CAP_CHECKPOINT_RESTORE"]}
    made = specs.without_young({"args": ["x"], "capabilities": sets})
    assert made == {"args": ["x"], "capabilities": {"bounding": ["CAP_CHOWN"], "ambient": []}}


def backend_of(context: HostContext, **options: Any) -> GvisorBackend:
    made = settings("h", GvisorOptions(**options), context)
    return GvisorBackend(GvisorHost(Runsc(made), context, cast("Any", None), cast("Any", None), frozenset(), all_capabilities=False))


def test_the_final_spec_is_shown(context: HostContext) -> None:
    given = oci(namespaces=[{"type": "pid"}], maskedPaths=["/proc/keys", "/etc/hidden"])
    given["annotations"] |= {"io.kubernetes.cri.sandbox-id": "s1", "io.kubernetes.cri-o.ContainerID": "c1"}
    given["process"]["capabilities"] = {"bounding": ["CAP_BPF", "CAP_CHOWN"]}
    made = backend_of(context).final_spec(given)
    assert made["annotations"]["io.kubernetes.cri.container-type"] == "container"
    assert made["linux"]["namespaces"] == [{"type": "pid", "path": "@container/c1"}]
    assert made["linux"]["maskedPaths"] == ["/etc/hidden"], "what is gVisor's own needs no mount"
    assert made["process"]["capabilities"]["bounding"] == ["CAP_CHOWN"], "this runsc knows no younger ones"
    shown = backend_of(context).final_sandbox_spec(sandbox(cgroup="/pods/web"))
    assert ("dev.gvisor.spec.cgroup-parent" in shown["annotations"]) is not cgroups.is_v2()


@pytest.mark.parametrize(
    ("cgroup", "driver", "refused"), [("/pods/web", "cgroupfs", False), ("", "cgroupfs", True), ("/p.slice", "systemd", True)]
)
async def test_a_pods_limits_are_those_of_its_cgroup(context: HostContext, cgroup: str, driver: Any, refused: bool) -> None:
    host = replace(context, cgroup_driver=CgroupDriver.SYSTEMD)
    held = GvisorSandbox(backend_of(host, cgroup_driver=driver)._host, sandbox(cgroup=cgroup))
    with pytest.raises(Unsupported, match="has a cgroup of its own") if refused else nullcontext():
        await held.update({"memory": {"limit": 1 << 30}})


@pytest.mark.parametrize(
    ("driver", "path"),
    [("systemd", "kubepods-pod7.slice:cri-bridge:c1"), ("cgroupfs", "/kubepods.slice/kubepods-pod7.slice/cri-bridge-c1.scope")],
)
async def test_a_runsc_that_makes_cgroups_itself_gets_a_path_on_a_host_of_systemd(
    context: HostContext, tmp_path: Path, driver: Any, path: str
) -> None:
    host = backend_of(replace(context, cgroup_driver=CgroupDriver.SYSTEMD), cgroup_driver=driver)._host
    given = oci(cgroupsPath="kubepods-pod7.slice:cri-bridge:c1")
    await host.write_bundle(tmp_path / "bundle", given)
    assert json.loads((tmp_path / "bundle/config.json").read_text())["linux"]["cgroupsPath"] == path
    assert host.sandbox_spec(sandbox(oci=given))["linux"]["cgroupsPath"] == path
