"""Core's records as a kubelet and crictl see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import convert
from bridge.core import model
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState, User
from bridge.errors import InvalidRequest
from bridge.ports.images import FsUsage, Image, ImageConfig, RegistryAuth

SANDBOX = Sandbox(
    id="s" * 64,
    config=model.PodConfig(
        metadata=model.PodMetadata("web", "u-1", "default", 3),
        labels={"app": "web"},
        annotations={"a": "b"},
        security=model.SandboxSecurity(
            namespaces=model.NamespaceOptions(
                pid=model.NamespaceMode.CONTAINER,
                user=model.UserNamespace(model.NamespaceMode.POD, (model.IDMapping(1000, 0, 65536),), (model.IDMapping(1000, 0, 65536),)),
            )
        ),
    ),
    handler="runc",
    runtime_handler="",
    state=SandboxState.READY,
    created_at=17,
    boot_id="b",
    ips=("10.1.2.3", "fd00::3"),
    attachment={"network": "pods", "data": {}},
)
CONTAINER = Container(
    id="c" * 64,
    sandbox_id=SANDBOX.id,
    config=model.ContainerConfig(
        metadata=model.ContainerMetadata("main", 1),
        image=model.ImageSpec("busybox:1", user_specified_image="busybox"),
        labels={"app": "web"},
        annotations={"a": "b"},
        mounts=(
            model.MountRequest("/data", "/srv", readonly=True, recursive_read_only=True, propagation=model.MountPropagation.BIDIRECTIONAL),
            model.MountRequest("/img", image=model.ImageSpec("data:1"), image_sub_path="sub", mount_options=("noexec",)),
        ),
        resources=model.Resources(memory_limit_in_bytes=5, hugepage_limits=(("2MB", 1),), unified={"memory.high": "1"}),
    ),
    image_id="sha256:1",
    image_ref="sha256:1",
    state=ContainerState.EXITED,
    created_at=1,
    started_at=2,
    finished_at=3,
    exit_code=137,
    reason="OOMKilled",
    message="too big",
    boot_id="b",
    log_path="/var/log/pods/web/main/0.log",
    stop_signal="SIGQUIT",
    user=User(7, 8, (9, 10)),
)


def test_pod_in_a_list() -> None:
    assert convert.pod_sandbox(SANDBOX) == pb.PodSandbox(
        id=SANDBOX.id,
        metadata=pb.PodSandboxMetadata(name="web", uid="u-1", namespace="default", attempt=3),
        state=pb.PodSandboxState.SANDBOX_READY,
        created_at=17,
        labels={"app": "web"},
        annotations={"a": "b"},
        runtime_handler="",
    )


@pytest.mark.parametrize("state", list(SandboxState))
def test_only_a_ready_pod_is_ready(state: SandboxState) -> None:
    shown = {convert.pod_sandbox(replace(SANDBOX, state=state)).state, convert.pod_sandbox_status(replace(SANDBOX, state=state)).state}
    expected = pb.PodSandboxState.SANDBOX_READY if state is SandboxState.READY else pb.PodSandboxState.SANDBOX_NOTREADY
    assert shown == {expected}


def test_pod_status() -> None:
    status = convert.pod_sandbox_status(replace(SANDBOX, runtime_handler="gvisor"))
    assert status.network == pb.PodSandboxNetworkStatus(ip="10.1.2.3", additional_ips=[pb.PodIp(ip="fd00::3")])
    assert status.runtime_handler == "gvisor"
    mapping = [pb.IdMapping(host_id=1000, container_id=0, length=65536)]
    assert status.linux is not None
    assert status.linux.namespaces == pb.Namespace(
        options=pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, userns_options=pb.UserNamespace(uids=mapping, gids=mapping))
    )


def test_a_pod_in_the_hosts_network_has_no_address_of_its_own() -> None:
    assert convert.pod_sandbox_status(replace(SANDBOX, ips=())).network == pb.PodSandboxNetworkStatus(ip="", additional_ips=[])


def test_a_pod_that_was_taken_off_the_network_has_no_address_any_more() -> None:
    stopped = replace(SANDBOX, state=SandboxState.STOPPED, attachment=None)
    assert convert.pod_sandbox_status(stopped).network == pb.PodSandboxNetworkStatus()
    assert convert.pod_sandbox_status(replace(SANDBOX, state=SandboxState.STOPPED)).network == convert.pod_sandbox_status(SANDBOX).network


def test_container_in_a_list() -> None:
    assert convert.container(CONTAINER) == pb.Container(
        id=CONTAINER.id,
        pod_sandbox_id=SANDBOX.id,
        metadata=pb.ContainerMetadata(name="main", attempt=1),
        image=pb.ImageSpec(image="busybox:1", user_specified_image="busybox"),
        image_ref="sha256:1",
        image_id="sha256:1",
        state=pb.ContainerState.CONTAINER_EXITED,
        created_at=1,
        labels={"app": "web"},
        annotations={"a": "b"},
    )


def test_an_image_volume_is_told_by_its_id() -> None:
    status = convert.container_status(replace(CONTAINER, mount_images=("", "sha256:7")))
    assert status.mounts[0].image is None
    assert status.mounts[1].image == pb.ImageSpec(image="sha256:7", image_ref="sha256:7")
    assert status.mounts[1].image_sub_path == "sub"


def test_container_status() -> None:
    assert convert.container_status(CONTAINER) == pb.ContainerStatus(
        id=CONTAINER.id,
        metadata=pb.ContainerMetadata(name="main", attempt=1),
        state=pb.ContainerState.CONTAINER_EXITED,
        created_at=1,
        started_at=2,
        finished_at=3,
        exit_code=137,
        image=pb.ImageSpec(image="busybox:1", user_specified_image="busybox"),
        image_ref="sha256:1",
        reason="OOMKilled",
        message="too big",
        labels={"app": "web"},
        annotations={"a": "b"},
        mounts=[
            pb.Mount(
                container_path="/data",
                host_path="/srv",
                readonly=True,
                recursive_read_only=True,
                propagation=pb.MountPropagation.PROPAGATION_BIDIRECTIONAL,
            ),
            pb.Mount(container_path="/img", image=pb.ImageSpec(image="data:1"), image_sub_path="sub", mount_options=["noexec"]),
        ],
        log_path="/var/log/pods/web/main/0.log",
        resources=pb.ContainerResources(
            linux=pb.LinuxContainerResources(
                memory_limit_in_bytes=5,
                hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=1)],
                unified={"memory.high": "1"},
            )
        ),
        image_id="sha256:1",
        user=pb.ContainerUser(linux=pb.LinuxContainerUser(uid=7, gid=8, supplemental_groups=[9, 10])),
        stop_signal=pb.Signal.SIGQUIT,
    )


def test_container_states() -> None:
    assert {state.value: convert.STATES[state].name for state in ContainerState} == {
        "creating": "CONTAINER_CREATED",
        "created": "CONTAINER_CREATED",
        "starting": "CONTAINER_CREATED",
        "running": "CONTAINER_RUNNING",
        "exited": "CONTAINER_EXITED",
        "removing": "CONTAINER_EXITED",
    }


def test_sandbox_filters() -> None:
    assert convert.sandbox_filter(None) == convert.SandboxFilter()
    assert convert.sandbox_filter(pb.PodSandboxFilter()) == convert.SandboxFilter()
    for number, ready in ((0, True), (1, False), (9, False)):
        state = pb.PodSandboxStateValue(state=pb.PodSandboxState(number))
        found = convert.sandbox_filter(pb.PodSandboxFilter(id="ab", state=state, label_selector={"a": "b"}))
        assert found == convert.SandboxFilter("ab", ready, {"a": "b"})


def test_container_filters() -> None:
    assert convert.container_filter(None) == convert.ContainerFilter()
    assert convert.container_filter(pb.ContainerFilter()) == convert.ContainerFilter()
    found = convert.container_filter(
        pb.ContainerFilter(id="ab", pod_sandbox_id="cd", state=pb.ContainerStateValue(), label_selector={"a": "b"})
    )
    made = frozenset((ContainerState.CREATING, ContainerState.CREATED, ContainerState.STARTING))
    assert found == convert.ContainerFilter("ab", "cd", made, {"a": "b"})
    for number in (3, 9):
        state = pb.ContainerStateValue(state=pb.ContainerState(number))
        assert convert.container_filter(pb.ContainerFilter(state=state)).states == frozenset()


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("1000", 1000, ""),
        ("0:0", 0, ""),
        ("1000:staff", 1000, ""),
        ("web", None, "web"),
        ("web:staff", None, "web"),
        ("²", None, "²"),
        ("2147483647", 2147483647, ""),
        ("2147483648", None, "2147483648"),  # CVE-2024-40635: no number that is no id
        ("4294967296:0", None, "4294967296"),
        ("9" * 5000, None, "9" * 5000),
    ],
)
def test_image(user: str, uid: int | None, username: str) -> None:
    found = convert.image(Image("sha256:1", ("a:1",), ("a@sha256:2",), 42, True, ImageConfig(user=user), ("sha256:3",)))
    assert (found.id, found.repo_tags, found.repo_digests, found.size, found.pinned) == ("sha256:1", ["a:1"], ["a@sha256:2"], 42, True)
    assert found.username == username
    assert found.uid == (None if uid is None else pb.Int64Value(value=uid))


def test_image_names() -> None:
    assert convert.image_name(pb.ImageSpec(image="busybox")) == "busybox"
    for nothing in (None, pb.ImageSpec()):
        with pytest.raises(InvalidRequest) as info:
            convert.image_name(nothing)
        assert info.value.field == "image.image"


def test_credentials() -> None:
    assert convert.registry_auth(None) is None
    value = pb.AuthConfig(username="u", password="p", auth="a", server_address="s", identity_token="i", registry_token="r")
    found = convert.registry_auth(value)
    assert found == RegistryAuth(username="u", password="p", auth="a", server_address="s", identity_token="i", registry_token="r")


def test_filesystem_usage() -> None:
    assert convert.filesystem_usage(FsUsage(Path("/var/lib/x"), 10, 20, 30)) == pb.FilesystemUsage(
        timestamp=30,
        fs_id=pb.FilesystemIdentifier(mountpoint="/var/lib/x"),
        used_bytes=pb.UInt64Value(value=10),
        inodes_used=pb.UInt64Value(value=20),
    )
