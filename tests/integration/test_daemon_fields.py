"""Fields of the four requests that no other suite tries on the real daemon: what is required, absent, unknown or told back."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import IMAGE, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

INVALID, UNIMPLEMENTED = Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED


async def refused(call: Any, code: Status, field: str) -> None:
    """The call fails with ``code``, and the message begins with the field."""
    with pytest.raises(CriError) as caught:
        await call
    assert (caught.value.code, caught.value.message.startswith(f"{field}: ")) == (code, True), caught.value


async def test_what_run_pod_sandbox_needs(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    await refused(runtime.run_pod_sandbox(pb.RunPodSandboxRequest()), INVALID, "config")
    windows = pb.WindowsPodSandboxConfig(security_context=pb.WindowsSandboxSecurityContext(host_process=True))
    await refused(kubelet.run(config=kubelet.pod_config(windows=windows)), UNIMPLEMENTED, "config.windows")
    context = pb.LinuxSandboxSecurityContext(namespace_options=namespaces(), run_as_group=pb.Int64Value(value=1))
    linux = pb.LinuxPodSandboxConfig(security_context=context)
    await refused(kubelet.run(config=kubelet.pod_config(linux=linux)), INVALID, "config.linux.security_context.run_as_group")
    newer = pb.SupplementalGroupsPolicy(7)
    linux.security_context = pb.LinuxSandboxSecurityContext(namespace_options=namespaces(), supplemental_groups_policy=newer)
    await refused(kubelet.run(config=kubelet.pod_config(linux=linux)), INVALID, "config.linux.security_context.supplemental_groups_policy")
    for name in ("network", "pid", "ipc"):
        options = pb.NamespaceOption(target_id="x")
        setattr(options, name, pb.NamespaceMode.TARGET)
        linux.security_context = pb.LinuxSandboxSecurityContext(namespace_options=options)
        field = f"config.linux.security_context.namespace_options.{name}"
        await refused(kubelet.run(config=kubelet.pod_config(linux=linux)), INVALID, field)
    config = kubelet.pod_config(windows=pb.WindowsPodSandboxConfig())
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.supplemental_groups_policy = pb.SupplementalGroupsPolicy.Strict
    pod = await kubelet.run(config=config)
    assert await kubelet.run(config=config) == pod
    config.hostname = "other"
    with pytest.raises(CriError, match="with another configuration") as caught:
        await kubelet.run(config=config)
    assert caught.value.code is Status.ALREADY_EXISTS


async def test_what_create_container_needs(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    pod = await kubelet.run()
    await refused(runtime.create_container(pb.CreateContainerRequest(pod_sandbox_id=pod)), INVALID, "config")
    config = kubelet.container_config("app", "true")
    with pytest.raises(CriError) as caught:
        await runtime.create_container(pb.CreateContainerRequest(pod_sandbox_id="absent", config=config))
    assert caught.value.code is Status.NOT_FOUND
    key, value = pb.KeyValue(key="a=b"), pb.KeyValue(key="K", value=b"\xff")
    nul, empty = pb.KeyValue(key="K", value=b"a\0b"), pb.KeyValue(value=b"x")
    windows = pb.WindowsContainerConfig(resources=pb.WindowsContainerResources(cpu_count=1))
    cases: list[tuple[dict[str, Any], Status, str]] = [
        ({"metadata": None}, INVALID, "config.metadata"),
        ({"metadata": pb.ContainerMetadata()}, INVALID, "config.metadata.name"),
        ({"image": None}, INVALID, "config.image.image"),
        ({"image": pb.ImageSpec()}, INVALID, "config.image.image"),
        ({"windows": windows}, UNIMPLEMENTED, "config.windows"),
        ({"envs": [empty]}, INVALID, "config.envs[0].key"),
        ({"envs": [pb.KeyValue(key="A"), key]}, INVALID, "config.envs[1]"),
        ({"envs": [nul]}, INVALID, "config.envs[0]"),
        ({"envs": [value]}, INVALID, "config.envs[0].value"),
        ({"devices": [pb.Device(container_path="/dev/x")]}, INVALID, "config.devices[0].host_path"),
        ({"CDI_devices": [pb.CdiDevice()]}, INVALID, "config.CDI_devices[0].name"),
        ({"mounts": [pb.Mount(host_path="/")]}, INVALID, "config.mounts[0].container_path"),
        ({"mounts": [pb.Mount(container_path="/a")]}, INVALID, "config.mounts[0].host_path"),
        ({"mounts": [pb.Mount("/a", "/b", propagation=pb.MountPropagation(3))]}, INVALID, "config.mounts[0].propagation"),
        ({"mounts": [pb.Mount("/a", "/b", image_sub_path="c")]}, INVALID, "config.mounts[0].image_sub_path"),
        ({"mounts": [pb.Mount("/a", "/etc", mount_options=["bind"])]}, INVALID, "config.mounts[0].mount_options[0]"),
        ({"linux": _limits(pb.HugepageLimit(limit=1))}, INVALID, "config.linux.resources.hugepage_limits[0].page_size"),
        ({"linux": _limits(pb.HugepageLimit(page_size="3MB", limit=1))}, UNIMPLEMENTED, "config.linux.resources.hugepage_limits[0]"),
    ]
    for number, (change, code, field) in enumerate(cases):
        await refused(kubelet.create(pod, "true", name=f"c{number}", **change), code, field)
    assert not (await runtime.list_containers()).containers
    changes: dict[str, Any] = {"windows": pb.WindowsContainerConfig(), "linux": _limits(pb.HugepageLimit(page_size="3MB"))}
    config = kubelet.container_config("app", "exit 3", **changes)
    made = await runtime.create_container(pb.CreateContainerRequest(pod_sandbox_id=pod[:12], config=config))
    await kubelet.start(made.container_id)
    assert (await kubelet.exited(made.container_id)).exit_code == 3


def _limits(*hugepages: pb.HugepageLimit) -> pb.LinuxContainerConfig:
    context = pb.LinuxContainerSecurityContext(namespace_options=namespaces())
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(hugepage_limits=list(hugepages)), security_context=context)


async def test_a_pod_without_a_security_context_and_a_container_without_its_linux_half(kubelet: Kubelet) -> None:
    """Absent is like empty: POD for each namespace, the image's user, no limits, no profile."""
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.security_context = None
    pod = await kubelet.run(config=config)
    container = await kubelet.started(pod, linux=None)
    assert "/pause" in await kubelet.output(container, "ps -o args")
    mounts = Path(f"/proc/{(await kubelet.pod_info(pod))['pid']}/mounts").read_text().splitlines()
    assert [line.split()[3].split(",")[0] for line in mounts if line.split()[1] == "/"] == ["ro"]
    assert await kubelet.output(container, "id -u; grep ^Seccomp: /proc/self/status | tr -d '[:blank:]'") == "0\nSeccomp:0"


async def test_variables_in_their_order(kubelet: Kubelet) -> None:
    given = [("A", "1"), ("PATH", "/bin"), ("B", "two = 2"), ("A", "3"), ("GRÜN", "ä\nö"), ("EMPTY", "")]
    pod = await kubelet.run(config=kubelet.pod_config(hostname="web-0"))
    container = await kubelet.started(pod, ["sleep", "1000"], envs=[pb.KeyValue(key=key, value=value.encode()) for key, value in given])
    found = (await kubelet.exec(container, "cat /proc/1/environ")).stdout.decode().rstrip("\0").split("\0")
    assert found == ["PATH=/bin", "HOSTNAME=web-0", "A=3", "B=two = 2", "GRÜN=ä\nö", "EMPTY=", "HOME=/root"]


async def test_the_nodes_ipc_namespace(kubelet: Kubelet) -> None:
    options = pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, ipc=pb.NamespaceMode.NODE)
    pod = await kubelet.run(options=options)
    container = await kubelet.started(pod, options=options)
    assert await kubelet.output(container, "readlink /proc/self/ns/ipc") == os.readlink("/proc/self/ns/ipc")
    shared = Path("/dev/shm") / f"cbt-{secrets.token_hex(4)}"
    shared.write_text("of the host")
    try:
        assert await kubelet.output(container, f"cat {shared}") == "of the host"
    finally:
        shared.unlink()
    own = await kubelet.started(await kubelet.run())
    assert await kubelet.output(own, "readlink /proc/self/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    assert await kubelet.output(own, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2") == "65536"


async def test_an_image_is_told_as_it_was_asked_for(kubelet: Kubelet) -> None:
    image = pb.ImageSpec(image=IMAGE, annotations={"a": "b"}, user_specified_image="busybox", runtime_handler="x", image_ref="sha256:0")
    container = await kubelet.create(await kubelet.run(), image=image)
    status = await kubelet.status(container)
    assert status.image == image
    listed = (await kubelet.cri.runtime.list_containers()).containers[0]
    assert (listed.image, listed.image_id) == (image, status.image_id)
    annotations = (await kubelet.info(container))["runtimeSpec"]["annotations"]
    assert annotations["io.kubernetes.cri.image-name"] == "busybox"


async def test_what_updates_need(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    windows = pb.WindowsContainerResources(cpu_count=1)
    request = pb.UpdateContainerResourcesRequest(container_id=container[:12], windows=windows)
    await refused(runtime.update_container_resources(request), UNIMPLEMENTED, "windows")
    more = pb.LinuxContainerResources(cpu_shares=512)
    request = pb.UpdateContainerResourcesRequest(container_id=container[:12], linux=more, annotations={"any": "thing"})
    await runtime.update_container_resources(request)
    resources = (await kubelet.status(container)).resources
    assert resources is not None
    assert resources.linux is not None
    assert resources.linux.cpu_shares == 512
    await runtime.update_pod_sandbox_resources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod[:12], resources=more))
    for call in (
        runtime.update_pod_sandbox_resources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="absent")),
        runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id="absent", linux=more)),
    ):
        with pytest.raises(CriError) as caught:
            await call
        assert caught.value.code is Status.NOT_FOUND
    await kubelet.stop_pod(pod)
    with pytest.raises(CriError) as caught:
        await runtime.update_pod_sandbox_resources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=more))
    assert caught.value.code is Status.FAILED_PRECONDITION
