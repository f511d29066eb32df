"""What a kubelet asks for, as the model has it; and the refusals, each naming its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import convert, encoding
from bridge.api import convert_parts as parts
from bridge.core import model
from bridge.errors import InvalidRequest
from bridge.ports.network import PortMapping


def pod() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u-1", namespace="default", attempt=2))


def container() -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main", attempt=1), image=pb.ImageSpec(image="busybox"))


def full_pod() -> pb.PodSandboxConfig:
    config = pod()
    config.hostname = "web-0"
    config.log_directory = "/var/log/pods/web"
    config.dns_config = pb.DnsConfig(servers=["10.0.0.10"], searches=["svc"], options=["ndots:5"])
    config.port_mappings = [
        pb.PortMapping(container_port=80, host_port=8080),
        pb.PortMapping(protocol=pb.Protocol.SCTP, container_port=53, host_ip="fd00::1"),
    ]
    config.labels = {"app": "web"}
    config.annotations = {"note": "x"}
    config.linux = pb.LinuxPodSandboxConfig(
        cgroup_parent="/kubepods/pod1",
        sysctls={"net.core.somaxconn": "1024"},
        overhead=pb.LinuxContainerResources(memory_limit_in_bytes=1 << 20),
        resources=pb.LinuxContainerResources(cpu_shares=2),
        security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(network=pb.NamespaceMode.NODE, pid=pb.NamespaceMode.CONTAINER),
            selinux_options=pb.SeLinuxOption(user="u", role="r", type="t", level="l"),
            run_as_user=pb.Int64Value(value=0),
            run_as_group=pb.Int64Value(value=7),
            readonly_rootfs=True,
            supplemental_groups=[3, 4],
            supplemental_groups_policy=pb.SupplementalGroupsPolicy.Strict,
            privileged=True,
            seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Localhost, localhost_ref="/p.json"),
        ),
    )
    return config


def test_a_minimal_pod() -> None:
    found = convert.pod_config(pod())
    assert found == model.PodConfig(metadata=model.PodMetadata("web", "u-1", "default", 2))


def test_a_full_pod() -> None:
    found = convert.pod_config(full_pod())
    assert found == model.PodConfig(
        metadata=model.PodMetadata("web", "u-1", "default", 2),
        hostname="web-0",
        log_directory="/var/log/pods/web",
        dns=model.DNSConfig(("10.0.0.10",), ("svc",), ("ndots:5",)),
        port_mappings=(PortMapping(80, 8080, "tcp", ""), PortMapping(53, 0, "sctp", "fd00::1")),
        labels={"app": "web"},
        annotations={"note": "x"},
        cgroup_parent="/kubepods/pod1",
        sysctls={"net.core.somaxconn": "1024"},
        overhead=model.Resources(memory_limit_in_bytes=1 << 20),
        resources=model.Resources(cpu_shares=2),
        security=model.SandboxSecurity(
            namespaces=model.NamespaceOptions(network=model.NamespaceMode.NODE, pid=model.NamespaceMode.CONTAINER),
            selinux=model.SELinuxOptions("u", "r", "t", "l"),
            run_as_user=0,
            run_as_group=7,
            readonly_rootfs=True,
            supplemental_groups=(3, 4),
            supplemental_groups_policy=model.GroupsPolicy.STRICT,
            privileged=True,
            seccomp=model.SecurityProfile(model.ProfileType.LOCALHOST, "/p.json"),
        ),
    )


def test_a_retry_is_equal_to_what_it_repeats() -> None:
    wire = encoding.encode(full_pod())
    first, second = (convert.pod_config(encoding.decode(pb.PodSandboxConfig, wire)) for _ in range(2))
    assert first == second


def full_container() -> pb.ContainerConfig:
    config = container()
    config.command, config.args, config.working_dir = ["sh"], ["-c", "true"], "/app"
    config.envs = [pb.KeyValue(key="K", value="grün".encode())]
    config.mounts = [
        pb.Mount(
            container_path="data",
            host_path="/srv",
            readonly=True,
            recursive_read_only=True,
            uid_mappings=[pb.IdMapping(host_id=1, container_id=2, length=3)],
        ),
        pb.Mount(
            container_path="/img",
            image=pb.ImageSpec(image="data:1"),
            image_sub_path="sub",
            propagation=pb.MountPropagation.PROPAGATION_HOST_TO_CONTAINER,
        ),
    ]
    config.devices = [pb.Device(host_path="/dev/fuse"), pb.Device(container_path="/dev/x", host_path="/dev/y", permissions="r")]
    config.CDI_devices = [pb.CdiDevice(name="vendor.com/gpu=0")]
    config.labels, config.annotations, config.log_path = {"a": "b"}, {"c": "d"}, "main/0.log"
    config.stdin, config.stdin_once, config.tty = True, True, True
    config.stop_signal = pb.Signal.SIGRTMINPLUS3
    config.linux = pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(
            cpu_period=100_000,
            cpu_quota=-1,
            oom_score_adj=-998,
            cpuset_cpus="0-1",
            hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=5)],
            unified={"memory.high": "1"},
            memory_swap_limit_in_bytes=-1,
        ),
        security_context=pb.LinuxContainerSecurityContext(
            capabilities=pb.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"], add_ambient_capabilities=["X"]),
            namespace_options=pb.NamespaceOption(pid=pb.NamespaceMode.TARGET, target_id="abc"),
            run_as_username="daemon",
            run_as_group=pb.Int64Value(value=1),
            no_new_privs=True,
            masked_paths=["/proc/kcore"],
            readonly_paths=["/proc/sys"],
            apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Unconfined),
        ),
    )
    return config


def test_a_full_container() -> None:
    found = convert.container_config(full_container())
    assert found == model.ContainerConfig(
        metadata=model.ContainerMetadata("main", 1),
        image=model.ImageSpec(image="busybox"),
        command=("sh",),
        args=("-c", "true"),
        working_dir="/app",
        envs=(("K", "grün"),),
        mounts=(
            model.MountRequest("data", "/srv", readonly=True, recursive_read_only=True, uid_mappings=(model.IDMapping(1, 2, 3),)),
            model.MountRequest(
                "/img",
                image=model.ImageSpec(image="data:1"),
                image_sub_path="sub",
                propagation=model.MountPropagation.HOST_TO_CONTAINER,
            ),
        ),
        devices=(model.DeviceRequest("/dev/fuse", "/dev/fuse", "rwm"), model.DeviceRequest("/dev/x", "/dev/y", "r")),
        cdi_devices=("vendor.com/gpu=0",),
        labels={"a": "b"},
        annotations={"c": "d"},
        log_path="main/0.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        resources=model.Resources(
            cpu_period=100_000,
            cpu_quota=-1,
            oom_score_adj=-998,
            cpuset_cpus="0-1",
            hugepage_limits=(("2MB", 5),),
            unified={"memory.high": "1"},
            memory_swap_limit_in_bytes=-1,
        ),
        security=model.ContainerSecurity(
            capabilities=model.Capabilities(("NET_ADMIN",), ("ALL",), ("X",)),
            namespaces=model.NamespaceOptions(pid=model.NamespaceMode.TARGET, target_id="abc"),
            run_as_username="daemon",
            run_as_group=1,
            no_new_privs=True,
            masked_paths=("/proc/kcore",),
            readonly_paths=("/proc/sys",),
            apparmor=model.SecurityProfile(model.ProfileType.UNCONFINED),
        ),
        stop_signal="SIGRTMIN+3",
    )
    assert convert.container_config(container()).security == model.ContainerSecurity()


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ("runtime/default", model.SecurityProfile(model.ProfileType.RUNTIME_DEFAULT)),
        ("docker/default", model.SecurityProfile(model.ProfileType.RUNTIME_DEFAULT)),
        ("unconfined", model.SecurityProfile(model.ProfileType.UNCONFINED)),
        ("localhost//etc/p.json", model.SecurityProfile(model.ProfileType.LOCALHOST, "/etc/p.json")),
        ("", None),
    ],
)
def test_profiles_of_old_kubelets(old: str, expected: model.SecurityProfile | None) -> None:
    new = pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Unconfined)
    assert parts.profile(None, old, "f") == expected
    assert parts.profile(new, old, "f") == model.SecurityProfile(model.ProfileType.UNCONFINED)


def test_the_old_prefix_in_the_new_field() -> None:
    local = model.SecurityProfile(model.ProfileType.LOCALHOST, "strict")
    for reference in ("strict", "localhost/strict"):
        assert parts.profile(_profile(pb.SecurityProfileProfileType.Localhost, reference), "unconfined", "f") == local


def test_every_member_of_each_enum_is_known() -> None:
    for mine, theirs in (
        (model.NamespaceMode, pb.NamespaceMode),
        (model.ProfileType, pb.SecurityProfileProfileType),
        (model.MountPropagation, pb.MountPropagation),
        (model.GroupsPolicy, pb.SupplementalGroupsPolicy),
    ):
        assert {parts.enum(mine, member, "f") for member in theirs} == set(mine)


def test_signals_by_name_and_back() -> None:
    for member in pb.Signal:
        assert parts.signal_message(parts.signal_name(member, "f")) is member
    assert parts.signal_name(pb.Signal.SIGRTMAXMINUS14, "f") == "SIGRTMAX-14"
    assert parts.signal_message("term") is pb.Signal.SIGTERM
    assert parts.signal_message("15") is pb.Signal.RUNTIME_DEFAULT


Change = Callable[[Any], object]


def _security(config: Any) -> Any:
    options = pb.NamespaceOption()
    if isinstance(config, pb.PodSandboxConfig):
        config.linux = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=options))
    else:
        config.linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(namespace_options=options))
    return config.linux.security_context


def _options(config: Any) -> Any:
    return _security(config).namespace_options


def _user(security: Any, **ids: int) -> Any:
    for name, value in ids.items():
        setattr(security, name, pb.Int64Value(value=value))
    return security


def _profile(kind: pb.SecurityProfileProfileType, reference: str) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=kind, localhost_ref=reference)


POD_REFUSALS: list[tuple[str, Change]] = [
    ("config.metadata", lambda c: setattr(c, "metadata", None)),
    ("config.metadata.name", lambda c: setattr(c.metadata, "name", "")),
    ("config.metadata.uid", lambda c: setattr(c.metadata, "uid", "")),
    ("config.metadata.namespace", lambda c: setattr(c.metadata, "namespace", "")),
    ("config.log_directory", lambda c: setattr(c, "log_directory", "logs")),
    ("config.port_mappings[0].container_port", lambda c: c.port_mappings.append(pb.PortMapping())),
    ("config.port_mappings[0].host_port", lambda c: c.port_mappings.append(pb.PortMapping(container_port=1, host_port=65536))),
    ("config.port_mappings[0].host_ip", lambda c: c.port_mappings.append(pb.PortMapping(container_port=1, host_ip="localhost"))),
    ("config.port_mappings[0].host_ip", lambda c: c.port_mappings.append(pb.PortMapping(container_port=1, host_ip="fe80::1%eth0"))),
    ("config.port_mappings[0].container_port", lambda c: c.port_mappings.append(pb.PortMapping(container_port=65536))),
    ("config.port_mappings[0].host_port", lambda c: c.port_mappings.append(pb.PortMapping(container_port=1, host_port=-1))),
    ("config.port_mappings[0].protocol", lambda c: c.port_mappings.append(pb.PortMapping(container_port=1, protocol=pb.Protocol(9)))),
    ("config.linux.security_context.run_as_group", lambda c: setattr(_security(c), "run_as_group", pb.Int64Value(value=1))),
    ("config.linux.security_context.run_as_user", lambda c: setattr(_security(c), "run_as_user", pb.Int64Value(value=-1))),
    ("config.linux.security_context.supplemental_groups[1]", lambda c: _security(c).supplemental_groups.extend((1, 1 << 32))),
    (
        "config.linux.security_context.supplemental_groups_policy",
        lambda c: setattr(_security(c), "supplemental_groups_policy", pb.SupplementalGroupsPolicy(7)),
    ),
    (
        "config.linux.security_context.seccomp.localhost_ref",
        lambda c: setattr(_security(c), "seccomp", pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Localhost)),
    ),
    (
        "config.linux.security_context.seccomp.profile_type",
        lambda c: setattr(_security(c), "seccomp", pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType(5))),
    ),
    ("config.linux.security_context.seccomp_profile_path", lambda c: setattr(_security(c), "seccomp_profile_path", "nonsense")),
    (
        "config.linux.security_context.namespace_options.network",
        lambda c: setattr(_options(c), "network", pb.NamespaceMode.CONTAINER),
    ),
    (
        "config.linux.security_context.namespace_options.ipc",
        lambda c: setattr(_options(c), "ipc", pb.NamespaceMode.TARGET),
    ),
    ("config.linux.security_context.namespace_options.pid", lambda c: setattr(_options(c), "pid", pb.NamespaceMode(4))),
    (
        "config.linux.security_context.namespace_options.userns_options.uids",
        lambda c: setattr(_options(c), "userns_options", pb.UserNamespace(mode=pb.NamespaceMode.NODE, uids=[pb.IdMapping()])),
    ),
]

CONTAINER_REFUSALS: list[tuple[str, Change]] = [
    ("config.metadata", lambda c: setattr(c, "metadata", None)),
    ("config.metadata.name", lambda c: setattr(c.metadata, "name", "")),
    ("config.image.image", lambda c: setattr(c, "image", None)),
    ("config.image.image", lambda c: setattr(c.image, "image", "")),
    ("config.envs[0].key", lambda c: c.envs.append(pb.KeyValue(value=b"x"))),
    ("config.envs[0].value", lambda c: c.envs.append(pb.KeyValue(key="K", value=b"\xff"))),
    ("config.mounts[0].container_path", lambda c: c.mounts.append(pb.Mount(host_path="/a"))),
    ("config.mounts[0].host_path", lambda c: c.mounts.append(pb.Mount(container_path="/a"))),
    ("config.mounts[0].image", lambda c: c.mounts.append(pb.Mount(container_path="/a", host_path="/b", image=pb.ImageSpec(image="i")))),
    ("config.mounts[0].image_sub_path", lambda c: c.mounts.append(pb.Mount(container_path="/a", host_path="/b", image_sub_path="c"))),
    (
        "config.mounts[0].propagation",
        lambda c: c.mounts.append(pb.Mount(container_path="/a", host_path="/b", propagation=pb.MountPropagation(3))),
    ),
    ("config.devices[0].host_path", lambda c: c.devices.append(pb.Device(container_path="/dev/x"))),
    ("config.CDI_devices[0].name", lambda c: c.CDI_devices.append(pb.CdiDevice())),
    ("config.stop_signal", lambda c: setattr(c, "stop_signal", pb.Signal(200))),
    (
        "config.linux.resources.oom_score_adj",
        lambda c: setattr(c, "linux", pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(oom_score_adj=1001))),
    ),
    (
        "config.linux.resources.cpu_shares",
        lambda c: setattr(c, "linux", pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(cpu_shares=-2))),
    ),
    (
        "config.linux.resources.hugepage_limits[0].page_size",
        lambda c: setattr(c, "linux", pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(hugepage_limits=[pb.HugepageLimit()]))),
    ),
    ("config.linux.security_context.run_as_group", lambda c: setattr(_security(c), "run_as_group", pb.Int64Value(value=1))),
    (
        "config.linux.security_context.namespace_options.target_id",
        lambda c: setattr(_options(c), "pid", pb.NamespaceMode.TARGET),
    ),
    ("config.linux.security_context.apparmor_profile", lambda c: setattr(_security(c), "apparmor_profile", "localhost/")),
    ("config.linux.security_context.apparmor_profile", lambda c: setattr(_security(c), "apparmor_profile", "strict")),
    ("config.linux.security_context.seccomp_profile_path", lambda c: setattr(_security(c), "seccomp_profile_path", "/a.json")),
    (
        "config.linux.security_context.apparmor.localhost_ref",
        lambda c: setattr(_security(c), "apparmor", _profile(pb.SecurityProfileProfileType.Localhost, "localhost/")),
    ),
    (
        "config.linux.security_context.seccomp.localhost_ref",
        lambda c: setattr(_security(c), "seccomp", _profile(pb.SecurityProfileProfileType.RuntimeDefault, "a.json")),
    ),
    (
        "config.linux.security_context.run_as_username",
        lambda c: setattr(_user(_security(c), run_as_user=0), "run_as_username", "app"),
    ),
    ("config.linux.security_context.run_as_user", lambda c: setattr(_security(c), "run_as_user", pb.Int64Value(value=1 << 31))),
    (
        "config.linux.security_context.run_as_group",
        lambda c: _user(_security(c), run_as_user=0, run_as_group=1 << 32),
    ),
    ("config.linux.security_context.supplemental_groups[0]", lambda c: _security(c).supplemental_groups.append(-1)),
]


@pytest.mark.parametrize(("field", "change"), POD_REFUSALS, ids=[f"{i} {field}" for i, (field, _) in enumerate(POD_REFUSALS)])
def test_pods_that_are_refused(field: str, change: Change) -> None:
    config = pod()
    change(config)
    with pytest.raises(InvalidRequest) as info:
        convert.pod_config(config)
    assert info.value.field == field
    assert str(info.value).startswith(f"{field}: ")


@pytest.mark.parametrize(("field", "change"), CONTAINER_REFUSALS, ids=[f"{i} {field}" for i, (field, _) in enumerate(CONTAINER_REFUSALS)])
def test_containers_that_are_refused(field: str, change: Change) -> None:
    config = container()
    change(config)
    with pytest.raises(InvalidRequest) as info:
        convert.container_config(config)
    assert info.value.field == field


def test_no_configuration_at_all() -> None:
    for function in (convert.pod_config, convert.container_config):
        with pytest.raises(InvalidRequest, match="config: is missing"):
            function(None)
