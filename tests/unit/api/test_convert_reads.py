"""Every field of the four requests is read by whoever converts them, or it is said here why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api.containers import ContainerRpcs
from bridge.api.sandboxes import SandboxRpcs
from bridge.api.snapshots import Snapshots
from bridge.errors import Unsupported
from bridge.wire.wiretypes import fields_of
from tests.unit.api.test_convert_config import full_container, full_pod

NOT_READ = {
    "CreateContainerRequest.sandbox_config": "the pod is as RunPodSandbox was told",
    "UpdateContainerResourcesRequest.annotations": "they are for extensions of the node, of which there are none",
}
LIMITS = pb.LinuxContainerResources(cpu_shares=2, hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=5)])


class Core:
    """Services that take anything and answer with an object of id "x"."""

    def __getattr__(self, name: str) -> Core:
        return self

    async def __call__(self, *given: object) -> object:
        return SimpleNamespace(id="x")


def messages(*roots: type[Any]) -> dict[str, type[Any]]:
    """The classes of messages that can be below ``roots``, but for Windows."""
    found: dict[str, type[Any]] = {}
    left = list(roots)
    while left:
        cls = left.pop()
        if cls.__name__ in found or cls.__name__.startswith("Windows"):
            continue
        found[cls.__name__] = cls
        left += [field.value.cls for field in fields_of(cls) if field.value.kind == "message" and field.value.cls is not None]
    return found


@contextmanager
def recorded(classes: dict[str, type[Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The fields that are read meanwhile, as Message.field."""
    reads: set[str] = set()

    def recorder(name: str) -> Callable[[object, str], object]:
        def read(self: object, attribute: str) -> object:
            reads.add(f"{name}.{attribute}")
            return object.__getattribute__(self, attribute)

        return read

    with monkeypatch.context() as patches:
        for name, cls in classes.items():
            patches.setattr(cls, "__getattribute__", recorder(name))
        yield reads


async def test_every_field_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = messages(
        pb.RunPodSandboxRequest, pb.CreateContainerRequest, pb.UpdateContainerResourcesRequest, pb.UpdatePodSandboxResourcesRequest
    )
    assert len(classes) > 25
    fields = {f"{name}.{field.name}" for name, cls in classes.items() for field in fields_of(cls)}
    pod, container = full_pod(), full_container()
    assert pod.linux is not None
    assert pod.linux.security_context is not None
    assert pod.linux.security_context.namespace_options is not None
    mapping = [pb.IdMapping(host_id=100000, length=65536)]
    pod.linux.security_context.namespace_options.userns_options = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=mapping, gids=mapping)
    run = pb.RunPodSandboxRequest(config=pod)
    create = pb.CreateContainerRequest(config=container, sandbox_config=pod)
    update = pb.UpdateContainerResourcesRequest(container_id="x", linux=LIMITS)
    update_pod = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="x", overhead=LIMITS, resources=LIMITS)
    core: Any = Core()
    pods, containers = SandboxRpcs(core, Snapshots(core)), ContainerRpcs(core)
    with recorded(classes, monkeypatch) as reads:
        await pods.run_pod_sandbox(run)
        await containers.create_container(create)
        await containers.update_container_resources(update)
        await pods.update_pod_sandbox_resources(update_pod)
    assert fields - reads == NOT_READ.keys()


async def test_settings_of_windows_containers_are_refused() -> None:
    core: Any = Core()
    pods, containers = SandboxRpcs(core, Snapshots(core)), ContainerRpcs(core)
    pod, container = full_pod(), full_container()
    pod.windows, container.windows = pb.WindowsPodSandboxConfig(), pb.WindowsContainerConfig()
    await pods.run_pod_sandbox(pb.RunPodSandboxRequest(config=pod))
    await containers.create_container(pb.CreateContainerRequest(config=container))
    network = pb.WindowsNamespaceOption(network=pb.NamespaceMode.NODE)
    context = pb.WindowsSandboxSecurityContext(host_process=True, namespace_options=network)
    pod.windows = pb.WindowsPodSandboxConfig(security_context=context)
    with pytest.raises(Unsupported, match=r"^config\.windows: "):
        await pods.run_pod_sandbox(pb.RunPodSandboxRequest(config=pod))
    limits = pb.WindowsContainerResources(affinity_cpus=[pb.WindowsCpuGroupAffinity(cpu_mask=1)])
    for windows in (
        pb.WindowsContainerConfig(resources=limits),
        pb.WindowsContainerConfig(security_context=pb.WindowsContainerSecurityContext(run_as_username="x")),
    ):
        container.windows = windows
        with pytest.raises(Unsupported, match=r"^config\.windows: "):
            await containers.create_container(pb.CreateContainerRequest(config=container))
    with pytest.raises(Unsupported, match=r"^windows: "):
        await containers.update_container_resources(pb.UpdateContainerResourcesRequest(container_id="x", windows=limits))
