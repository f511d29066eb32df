"""Pods: their life, and that every call may be made again."""

from __future__ import annotations

import anyio
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import EXITED, NOTREADY, READY, Stage


@spec("CRI RunPodSandbox, StopPodSandbox, RemovePodSandbox: stop and remove are idempotent", quick=True)
async def pod_lifecycle(stage: Stage) -> None:
    """A pod becomes ready, stops, goes, and may be stopped and removed again"""
    config = stage.pod_config(labels={"suite": "conformance", "app": "x"}, annotations={"note": "kept"})
    pod = await stage.pod(config=config)
    status = await stage.pod_status(pod)
    assert status.state is READY
    assert (status.metadata, status.labels, status.annotations) == (config.metadata, config.labels, config.annotations)
    assert status.runtime_handler == stage.node.target.name
    assert status.created_at > 0
    for _ in range(2):
        await stage.stop_pod(pod)
        assert (await stage.pod_status(pod)).state is NOTREADY
    for _ in range(2):
        await stage.remove_pod(pod)
    await stage.refused(stage.pod_status(pod), Status.NOT_FOUND)
    listed = await stage.cri.runtime.list_pod_sandbox(pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(id=pod)))
    assert listed.items == []


@spec("CRI RemovePodSandbox: containers in it are terminated and removed", quick=True)
async def running_pod_is_removed(stage: Stage) -> None:
    """Removing a pod ends and removes its containers, running or only created"""
    pod = await stage.pod()
    running = await stage.started(pod, name="running")
    created = await stage.create(pod, name="created")
    await stage.remove_pod(pod)
    for container in (running, created):
        await stage.refused(stage.status(container), Status.NOT_FOUND)


@spec("CRI StopPodSandbox: running containers are terminated")
async def stopped_pod_ends_its_containers(stage: Stage) -> None:
    """Stopping a pod ends its containers, whose status stays to be read"""
    pod = await stage.pod()
    running = await stage.started(pod, name="running")
    created = await stage.create(pod, name="created")
    await stage.stop_pod(pod)
    status = await stage.status(running)
    assert status.state is EXITED
    assert status.exit_code == 137 or status.exit_code == 143, f"exit code {status.exit_code}"
    await stage.refused(stage.start(created), Status.FAILED_PRECONDITION, Status.NOT_FOUND)
    await stage.remove(running)


@spec("kubelet: a request that timed out is made again (cri-o#7010, containerd#4604)")
async def same_request_is_the_same_pod(stage: Stage) -> None:
    """The same request made twice at once, and once more, is one pod"""
    config = stage.pod_config()
    pods: list[str] = []

    async def run() -> None:
        pods.append(await stage.pod(config=config))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        group.start_soon(run)
    await run()
    assert len(set(pods)) == 1, f"three requests for one pod made {set(pods)}"


@spec("CRI PodSandboxMetadata.attempt", quick=True)
async def next_attempt_is_another_pod(stage: Stage) -> None:
    """After a pod was stopped its next attempt runs, while the old one is still there"""
    config = stage.pod_config()
    first = await stage.pod(config=config)
    await stage.stop_pod(first)
    assert config.metadata is not None
    config.metadata.attempt = 1
    second = await stage.pod(config=config)
    assert second != first
    container = await stage.started(second)
    assert await stage.output(container, "echo here") == "here"


@spec("CRI ContainerStatus: containers of a pod have states of their own")
async def containers_share_a_pod(stage: Stage) -> None:
    """Ten containers of one pod start at once and end each with its own code"""
    pod = await stage.pod()
    codes: dict[int, int] = {}

    async def one(number: int) -> None:
        container = await stage.started(pod, f"exit {number}", name=f"c{number}")
        codes[number] = (await stage.exited(container)).exit_code

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)
    assert codes == {number: number for number in range(10)}
