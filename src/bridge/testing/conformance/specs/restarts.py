"""The server is stopped or killed and started again; containers must not notice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import Line, read
from bridge.testing.conformance.specs.limits import LIMIT, killed, limited
from bridge.testing.conformance.stage import CREATED, EXITED, READY, RUNNING, Stage

_COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"


@dataclass
class Scene:
    """A pod whose containers wait for a flag, write, trap a signal, are not started yet."""

    stage: Stage
    pod: str
    flags: Path
    during: str
    after: str
    writer: str
    polite: str
    made: str

    def go(self, name: str) -> None:
        """Let those that wait for ``name`` go on."""
        (self.flags / name).touch()


async def scene(stage: Stage) -> Scene:
    """Everything running."""
    pod = await stage.pod()
    flags = stage.node.shared_directory(pod)
    mounts = [pb.Mount(container_path="/flags", host_path=str(flags))]

    async def waiting(name: str, then: str) -> str:
        script = f"until [ -e /flags/{name} ]; do sleep 0.05; done; {then}"
        return await stage.started(pod, script, name=name, mounts=mounts)

    made = Scene(
        stage=stage,
        pod=pod,
        flags=flags,
        during=await waiting("during", "echo last words; exit 7"),
        after=await waiting("after", "exit 8"),
        writer=await stage.started(pod, _COUNT, name="writer"),
        polite=await stage.started(pod, "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done", name="polite"),
        made=await stage.create(pod, name="made"),
    )
    await stage.log(pod, "writer", until=lambda lines: len(lines) > 5)
    await stage.log(pod, "polite")
    return made


async def adopted(scene: Scene) -> None:
    """All that ran goes on, can be used, ends as it should, and what was written is in the logs."""
    stage, pod = scene.stage, scene.pod
    assert (await stage.pod_status(pod)).state is READY
    states = {name: (await stage.status(ident)).state for name, ident in (("after", scene.after), ("writer", scene.writer))}
    assert set(states.values()) == {RUNNING}, states
    assert (await stage.status(scene.made)).state is CREATED
    assert await stage.output(scene.after, "echo exec") == "exec"
    before = len(read(stage.log_path(pod, "writer")))
    await stage.log(pod, "writer", until=lambda lines: len(lines) > before + 5)
    scene.go("after")
    assert (await stage.exited(scene.after)).exit_code == 8
    await stage.start(scene.made)
    assert await stage.output(scene.made, "echo new") == "new"
    await stage.stop(scene.polite, int(stage.patience))
    assert (await stage.status(scene.polite)).exit_code == 3
    await stage.stop(scene.writer, 0)
    _contiguous(read(stage.log_path(pod, "writer")))
    another = await stage.started(pod, "exit 4", name="another")
    assert (await stage.exited(another)).exit_code == 4


def _contiguous(lines: list[Line]) -> None:
    numbers = [int(line.text) for line in lines if line.whole]
    assert numbers == list(range(len(numbers))), "lines of the log are missing or doubled"


async def _away(stage: Stage, end: Callable[[], Awaitable[None]]) -> None:
    """The server is ended by ``end``; meanwhile containers end; it comes back."""
    made = await scene(stage)
    await end()
    made.go("during")
    path = stage.log_path(made.pod, "during")

    async def written() -> bool:
        return any(line.text == b"last words" for line in read(path))

    await stage.until(written, "with the server away the log does not go on")
    await stage.node.start()
    ended = await stage.exited(made.during)
    assert (ended.exit_code, ended.reason) == (7, "Error"), (
        f"an exit while the server was away is told as {ended.exit_code}, {ended.reason}"
    )
    assert ended.started_at < ended.finished_at
    await adopted(made)


@spec("SIGTERM to the server: an upgrade of it must not touch containers", kills=True, timeout=120)
async def server_is_restarted(stage: Stage) -> None:
    """The server is stopped and started: containers go on and are adopted, exits meanwhile are exact, logs are whole"""
    await _away(stage, stage.node.stop)


@spec("kill -9 of the server", kills=True, quick=True, timeout=120)
async def server_is_killed(stage: Stage) -> None:
    """The server is killed and started: containers go on and are adopted, exits meanwhile are exact, logs are whole"""
    await _away(stage, stage.node.kill)


@spec("CRI ContainerStatus.reason OOMKilled; cri-o#6580", kills=True)
async def oom_meanwhile(stage: Stage) -> None:
    """A container that takes too much memory while the server is away is told as OOMKilled afterwards"""
    pod = await limited(stage)
    flags = stage.node.shared_directory(pod)
    mounts = [pb.Mount(container_path="/flags", host_path=str(flags))]
    script = "until [ -e /flags/go ]; do sleep 0.05; done; echo going; exec tail /dev/zero"
    container = await stage.started(pod, script, mounts=mounts, memory=LIMIT)
    await stage.node.kill()
    (flags / "go").touch()
    await anyio.sleep(1)
    await stage.node.start()
    killed(await stage.exited(container))


@spec("kubelet: pods are removed whatever happened to the server", kills=True, timeout=120)
async def removal_after_a_crash(stage: Stage) -> None:
    """A pod whose containers run, ended or never began can be stopped and removed by a server that was killed meanwhile"""
    made = await scene(stage)
    made.go("during")
    await stage.exited(made.during)
    await stage.node.kill()
    await stage.node.start()
    assert (await stage.status(made.during)).state is EXITED
    await stage.stop_pod(made.pod)
    await stage.remove_pod(made.pod)
    listed = await stage.cri.runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=made.pod)))
    assert listed.containers == []
