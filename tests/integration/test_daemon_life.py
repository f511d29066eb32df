"""A pod's whole life through the real daemon: lifecycle, exits and their reasons, execs, stops, lookups."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import USR1_IMAGE, DaemonNode, Kubelet, mark, processes

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

READY, NOT_READY = pb.PodSandboxState.SANDBOX_READY, pb.PodSandboxState.SANDBOX_NOTREADY
CREATED, RUNNING, EXITED = (pb.ContainerState[f"CONTAINER_{name}"] for name in ("CREATED", "RUNNING", "EXITED"))
POLITE = "trap 'echo bye; exit 3' TERM; echo up; echo worse >&2; while :; do sleep 0.02; done"


async def test_a_whole_life(kubelet: Kubelet) -> None:
    before = time.time_ns()
    name = f"life-{kubelet.handler}"
    pod = await kubelet.run(name, labels={"app": "life"}, annotations={"note": "n"})
    status = await kubelet.pod_status(pod)
    assert (status.state, status.metadata and status.metadata.name, status.runtime_handler) == (READY, name, kubelet.handler)
    assert (status.labels, status.annotations) == ({"app": "life"}, {"note": "n"})
    container = await kubelet.create(pod, POLITE, labels={"tier": "web"})
    made = await kubelet.status(container)
    assert (made.state, made.started_at, made.finished_at) == (CREATED, 0, 0)
    await kubelet.start(container)
    assert (await kubelet.status(container)).state is RUNNING
    answer = await kubelet.exec(container, "echo out; echo err >&2; exit 9")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 9)
    await kubelet.log(pod, until=lambda lines: len(lines) == 2)
    await kubelet.stop(container)
    ended = await kubelet.status(container)
    assert (ended.state, ended.exit_code, ended.reason) == (EXITED, 3, "Error")
    assert before < ended.created_at < ended.started_at <= ended.finished_at < time.time_ns()
    assert sorted(await kubelet.log(pod)) == ["stderr F worse", "stdout F bye", "stdout F up"]
    assert ended.log_path == str(kubelet.node.logs / name / "app.log")
    await kubelet.remove(container)
    await kubelet.stop_pod(pod)
    assert (await kubelet.pod_status(pod)).state is NOT_READY
    await kubelet.remove_pod(pod)
    for again in (kubelet.stop_pod(pod), kubelet.remove_pod(pod), kubelet.stop(container), kubelet.remove(container)):
        await again
    for lookup in (kubelet.pod_status(pod), kubelet.status(container), kubelet.start(container)):
        with pytest.raises(CriError) as caught:
            await lookup
        assert caught.value.code is Status.NOT_FOUND


async def test_the_same_request_gives_the_same_object(kubelet: Kubelet) -> None:
    config = kubelet.pod_config("twice")
    pod = await kubelet.run(config=config)
    assert await kubelet.run(config=config) == pod
    assert await kubelet.create(pod) == await kubelet.create(pod)


async def test_many_retries_at_once_make_one_pod(kubelet: Kubelet) -> None:
    config, found = kubelet.pod_config("flights"), set[str]()

    async def run() -> None:
        found.add(await kubelet.run(config=config))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(run)
    assert len(found) == 1


async def test_a_death_by_signal(kubelet: Kubelet) -> None:
    container = await kubelet.started(await kubelet.run())
    os.kill((await kubelet.info(container))["pid"], signal.SIGKILL)
    status = await kubelet.exited(container)
    assert (status.exit_code, status.reason) == (137, "Error")


@pytest.mark.parametrize(("command", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 7", 7, "Error")])
async def test_exit_codes(kubelet: Kubelet, command: str, code: int, reason: str) -> None:
    container = await kubelet.started(await kubelet.run(), command)
    status = await kubelet.exited(container)
    assert (status.exit_code, status.reason) == (code, reason)
    assert status.started_at <= status.finished_at


async def test_out_of_memory(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, ["tail", "/dev/zero"], memory=16 << 20)
    status = await kubelet.exited(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@pytest.mark.parametrize(("argv", "code"), [(["/nope"], 127), (["nope"], 127), (["/etc/passwd"], 126)])
async def test_a_command_that_cannot_run(kubelet: Kubelet, argv: list[str], code: int) -> None:
    pod = await kubelet.run()
    container = await kubelet.create(pod, argv)
    said = rf"{argv[0]}|open executable: Permission denied"  # crun 1.8 keeps the path to itself then
    with pytest.raises(CriError, match=said) as caught:
        await kubelet.start(container)
    assert caught.value.code is Status.INTERNAL
    assert f"handler '{kubelet.handler}': run failed" in caught.value.message
    status = await kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (EXITED, code, "ContainerCannotRun")
    assert status.finished_at > 0
    assert re.search(said, status.message)
    await kubelet.remove(container)


async def test_a_start_error_is_told(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    mount = pb.Mount(container_path="/file", host_path="/etc/passwd", readonly=True)  # what lies in a volume, only the runtime sees
    container = await kubelet.create(pod, working_dir="/file/impossible", mounts=[mount])
    with pytest.raises(CriError):
        await kubelet.start(container)
    status = await kubelet.status(container)
    assert (status.state, status.reason) == (EXITED, "StartError")
    assert status.exit_code == 128


async def test_only_a_created_container_starts(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    with pytest.raises(CriError) as caught:
        await kubelet.start(container)
    assert caught.value.code is Status.FAILED_PRECONDITION
    other = await kubelet.create(pod, name="late")
    await kubelet.stop_pod(pod)
    for call in (kubelet.start(other), kubelet.create(pod, name="later"), kubelet.exec(container, "true")):
        with pytest.raises(CriError) as caught:
            await call
        assert caught.value.code is Status.FAILED_PRECONDITION


async def test_filters_and_prefixes(kubelet: Kubelet) -> None:
    runtime = kubelet.cri.runtime
    pods = [await kubelet.run(labels={"app": app}) for app in ("a", "b")]
    ran = await kubelet.started(pods[0], name="ran", labels={"tier": "x"})
    made = await kubelet.create(pods[1], name="made")

    async def containers(**conditions: object) -> set[str]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**conditions))  # type: ignore[arg-type]
        return {each.id for each in (await runtime.list_containers(request)).containers}

    async def sandboxes(**conditions: object) -> set[str]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**conditions))  # type: ignore[arg-type]
        return {each.id for each in (await runtime.list_pod_sandbox(request)).items}

    assert await containers() == {ran, made}
    assert await containers(pod_sandbox_id=pods[0]) == {ran}
    assert await containers(id=made[:12]) == {made}
    assert await containers(state=pb.ContainerStateValue(state=RUNNING)) == {ran}
    assert await containers(label_selector={"tier": "x"}) == {ran}
    assert await containers(id=ran, pod_sandbox_id=pods[1]) == set()
    assert await sandboxes(label_selector={"app": "b"}) == {pods[1]}
    await kubelet.stop_pod(pods[1])
    assert await sandboxes(state=pb.PodSandboxStateValue(state=NOT_READY)) == {pods[1]}
    assert (await kubelet.status(ran[:10])).id == ran
    assert (await kubelet.pod_status(pods[0][:10])).id == pods[0]
    with pytest.raises(CriError) as caught:
        await kubelet.status("")
    assert caught.value.code is Status.INVALID_ARGUMENT
    await kubelet.stop(ran[:10], 0)
    await kubelet.remove(ran[:10])
    assert await containers() == {made}


async def test_verbose_info(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, ["sleep", "777"])
    told = await kubelet.info(container)
    assert Path(f"/proc/{told['pid']}/cmdline").read_bytes() == b"sleep\x00777\x00"
    assert (told["sandboxID"], told["runtimeHandler"], told["runtimeSpec"]["process"]["args"]) == (pod, kubelet.handler, ["sleep", "777"])
    about = await kubelet.pod_info(pod)
    assert (about["runtimeHandler"], about["cgroupParent"]) == (kubelet.handler, kubelet.configs[pod].linux.cgroup_parent)  # type: ignore[union-attr]
    assert {"RunPodSandbox", "cni add"} <= {span["name"] for span in about["trace"]}
    trace = await kubelet.cri.admin.trace(admin.TraceRequest(pod_sandbox_id=pod))
    assert trace.pod_sandbox_id == pod


async def test_a_timed_out_exec_leaves_nothing(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    marks = [mark(8001), mark(8002)]
    began = time.monotonic()
    with pytest.raises(CriError, match="timed out") as caught:
        await kubelet.exec(container, f"setsid sleep {marks[0]} & (setsid sleep {marks[1]} </dev/null >/dev/null 2>&1 &) ; wait", timeout=1)
    assert caught.value.code is Status.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 30
    assert processes(marks[0]) + processes(marks[1]) == []
    assert await kubelet.output(container, "echo alive") == "alive"


async def test_an_exec_ends_though_its_child_keeps_stdout(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    word = mark(8003)
    began = time.monotonic()
    answer = await kubelet.exec(container, f"setsid sleep {word} & echo started")
    assert (answer.stdout, answer.exit_code) == (b"started\n", 0)
    assert time.monotonic() - began < 30
    assert processes(word) == []


async def test_exec_output_is_capped(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    answer = await kubelet.exec(container, "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 4", timeout=60)
    assert answer.exit_code == 4
    assert len(answer.stdout) <= 16 << 20
    assert len(answer.stdout) + len(answer.stderr) > 15 << 20


async def test_a_missing_exec_command_says_so(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    with pytest.raises(CriError, match="nope"):
        await kubelet.exec(container, ["nope"])
    with pytest.raises(CriError) as caught:
        await kubelet.exec(container, [])
    assert caught.value.code is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("changes", "name"), [({"image": pb.ImageSpec(image=USR1_IMAGE)}, "USR1"), ({"stop_signal": pb.Signal.SIGUSR2}, "USR2"), ({}, "TERM")]
)
async def test_stop_signals(kubelet: Kubelet, changes: dict[str, Any], name: str) -> None:
    pod = await kubelet.run()
    traps = "; ".join(f"trap 'exit {code}' {each}" for each, code in (("USR1", 11), ("USR2", 12), ("TERM", 13)))
    container = await kubelet.started(pod, f"{traps}; echo up; while :; do sleep 0.02; done", **changes)
    await kubelet.log(pod)
    await kubelet.stop(container)
    assert (await kubelet.status(container)).exit_code == {"USR1": 11, "USR2": 12, "TERM": 13}[name]


async def test_a_shorter_stop_shortens_the_first(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    await kubelet.log(pod)
    began = time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(kubelet.stop, container, 86400)
        await anyio.sleep(0.2)
        assert (await kubelet.status(container)).state is RUNNING
        await kubelet.stop(container, 0)
    assert time.monotonic() - began < 30
    assert (await kubelet.status(container)).exit_code == 137


async def test_removing_a_running_pod_ends_everything(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    word = mark(8004)
    await kubelet.started(pod, ["sleep", word], name="one")
    await kubelet.create(pod, name="two")
    await kubelet.remove_pod(pod)
    assert processes(word) == []
    assert (await kubelet.cri.runtime.list_containers()).containers == []


async def test_refusals_name_what_there_is(kubelet: Kubelet) -> None:
    kubelet.handler = "kata"
    with pytest.raises(CriError, match=r"no runtime handler 'kata' \(enabled handlers: crun, runc\)") as caught:
        await kubelet.run()
    assert caught.value.code is Status.NOT_FOUND
    kubelet.handler = "runc"
    pod = await kubelet.run()
    with pytest.raises(CriError, match="missing:latest") as caught:
        await kubelet.create(pod, image=pb.ImageSpec(image="localhost/missing:latest"))
    assert caught.value.code is Status.NOT_FOUND


async def test_version_status_and_image_info(kubelet: Kubelet, node: DaemonNode) -> None:
    runtime, image = kubelet.cri.runtime, kubelet.cri.image
    assert (await runtime.version()).runtime_name == "cri-bridge"
    status = await runtime.status(pb.StatusRequest(verbose=True))
    assert status.status is not None
    assert {c.type: c.status for c in status.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert {"runc", "crun"} <= {each.name for each in status.runtime_handlers}
    assert json.loads(status.info["handlers"])["handlers"][kubelet.handler]["enabled"]
    assert (await image.image_fs_info()).image_filesystems[0].used_bytes is not None
    found: Callable[[str], object] = {tag: each for each in (await image.list_images()).images for tag in each.repo_tags}.get
    assert found(USR1_IMAGE) is not None
