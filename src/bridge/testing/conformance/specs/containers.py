"""Containers: order of their life, exit codes, attempts."""

from __future__ import annotations

import time

from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import written
from bridge.testing.conformance.node import IMAGE
from bridge.testing.conformance.stage import CREATED, EXITED, RUNNING, Stage


@spec("CRI CreateContainer … RemoveContainer, ContainerStatus", quick=True)
async def container_lifecycle(stage: Stage) -> None:
    """A container is created, runs, ends and goes, with the times of each, and may be stopped and removed again"""
    pod = await stage.pod()
    began = time.time_ns()
    container = await stage.create(pod, labels={"tier": "one"}, annotations={"note": "kept"})
    status = await stage.status(container)
    assert (status.state, status.started_at, status.finished_at) == (CREATED, 0, 0)
    assert (status.metadata, status.labels, status.annotations) == (
        pb.ContainerMetadata(name="app"),
        {"tier": "one"},
        {"note": "kept"},
    )
    await stage.start(container)
    status = await stage.status(container)
    assert status.state is RUNNING
    assert began <= status.created_at <= status.started_at <= time.time_ns()
    for _ in range(2):
        await stage.stop(container, 0)
        status = await stage.status(container)
        assert (status.state, status.exit_code) == (EXITED, 137)
    assert status.started_at <= status.finished_at <= time.time_ns()
    for _ in range(2):
        await stage.remove(container)
    await stage.refused(stage.status(container), Status.NOT_FOUND)


@spec("CRI StopContainer, RemoveContainer of a created container")
async def never_started(stage: Stage) -> None:
    """A container that was created and never started is stopped and removed, with its pod or without"""
    pod = await stage.pod()
    first, second = await stage.create(pod, name="first"), await stage.create(pod, name="second")
    await stage.stop(first, 1)
    await stage.remove(first)
    assert (await stage.status(second)).state is CREATED
    await stage.refused(stage.exec(second, "true"), Status.FAILED_PRECONDITION)
    third = await stage.create(pod, name="third")
    await stage.remove(third)


@spec("CRI StartContainer: a container is started once")
async def start_is_once(stage: Stage) -> None:
    """A container that runs or has ended can't be started again"""
    pod = await stage.pod()
    container = await stage.started(pod)
    await stage.refused(stage.start(container), Status.FAILED_PRECONDITION)
    await stage.stop(container, 0)
    await stage.refused(stage.start(container), Status.FAILED_PRECONDITION)


@spec("CRI ContainerStatus.exit_code, reason (kubelet: Completed, Error)", quick=True)
async def exit_codes(stage: Stage) -> None:
    """Exit codes 0, 3 and 255 are told as they are; of a signal as 128 and its number"""
    pod = await stage.pod()
    for code, command in ((0, "exit 0"), (3, "exit 3"), (255, "exit 255"), (143, "sh -c 'kill -TERM $$'; exit $?")):
        container = await stage.started(pod, command, name=f"code{code}")
        status = await stage.exited(container)
        assert status.exit_code == code, f"{command!r} ended with {status.exit_code}"
        assert status.reason == ("Completed" if code == 0 else "Error"), status.reason
    killed = await stage.started(pod, name="killed")
    await stage.stop(killed, 0)
    assert (await stage.status(killed)).exit_code == 137


@spec("CRI StartContainer of a command that does not exist", quick=True)
async def missing_command(stage: Stage) -> None:
    """A command that is not in the image fails the start, in words that name it, and leaves a container to be removed"""
    pod = await stage.pod()
    container = await stage.create(pod, ["no-such-command"])
    words = await stage.refused(stage.start(container), *set(Status) - {Status.OK, Status.DEADLINE_EXCEEDED})
    assert "no-such-command" in words, f"the error does not name the command: {words}"
    status = await stage.status(container)
    assert status.state is EXITED
    assert status.exit_code != 0
    await stage.remove(container)
    assert await stage.output(await stage.started(pod, name="next"), "echo next") == "next"


@spec("CRI ContainerMetadata.attempt, log_path per attempt")
async def attempts(stage: Stage) -> None:
    """A container that is restarted again and again is a new one each time, with its attempt and a log of its own"""
    pod = await stage.pod()
    for attempt in range(3):
        container = await stage.started(pod, f"echo attempt {attempt}; exit {attempt}", attempt=attempt)
        status = await stage.exited(container)
        assert status.metadata == pb.ContainerMetadata(name="app", attempt=attempt)
        assert status.exit_code == attempt
        path = stage.log_path(pod, attempt=attempt)
        assert status.log_path == str(path)
        assert path.read_bytes().endswith(b" stdout F attempt %d\n" % attempt)
    wanted = pb.ContainerFilter(pod_sandbox_id=pod)
    listed = (await stage.cri.runtime.list_containers(pb.ListContainersRequest(filter=wanted))).containers
    assert sorted(each.metadata.attempt for each in listed if each.metadata) == [0, 1, 2]


@spec("image config: Cmd, Env, WorkingDir; CRI command, args")
async def image_defaults(stage: Stage) -> None:
    """What the request leaves out comes from the image, and arguments replace its command"""
    pod = await stage.pod()
    container = await stage.started(pod, [], name="args", args=["sh", "-c", "echo $FROM_IMAGE; pwd"])
    await stage.exited(container)
    assert written(await stage.log(pod, "args")) == b"yes\n/tmp\n"
    status = await stage.status(container)
    assert status.image is not None
    assert status.image.image == IMAGE or status.image_ref, status.image
