"""A fake kubelet that does whatever a kubelet may do, while servers and monitors are killed: a model knows what must be true.

Several workers, each with a pod of its own, choose the next operation by a seed. Each operation is repeated until it is answered, as a
kubelet does it; then what the server tells of the pod is compared with the model. The model knows a fact only when an answer
told it: an operation that was cut off may have happened or not, and the comparison then decides which.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError, connect
from bridge.testing.failpoints import INJECTED, Control
from tests.integration.daemon_node import DaemonNode, Kubelet

T = TypeVar("T")
Steps = Mapping[str, Callable[[], Awaitable[None]]]
_PATIENCE = 90.0
_MOST = 3  # containers of one pod
_LAST = 0.06  # how likely the next operation is the pod's last but one
_IMAGES = 0.05  # how likely the next operation is one of images
_SCRIPT = "trap 'exit 3' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"
_STATES = {0: "created", 1: "running", 2: "exited"}
_LOST = ("ContainerLost", "StartError", "MonitorLost", "ContainerCannotRun")
_READ_SECONDS = 5.0
FAULTS_AMID = ("kill-server", "kill-monitor", "kill-both", "error", "restart", "kill-starting")
STEPS = (
    *("RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "StopContainer", "ReopenContainerLog", "reads"),
    *("UpdateContainerResources", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "PullImage", "RemoveImage"),
)
"""What may go wrong and what is done, as they are counted."""


class Phase(enum.StrEnum):
    """What the model knows of a container."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass
class Member:
    """One container of the model."""

    name: str
    attempt: int
    phase: Phase


@dataclass
class Worker:
    """One pod and its containers, by what was answered. ``lost`` counts containers that a crash ended, which must say so."""

    number: int
    node: DaemonNode
    handler: str
    chance: random.Random
    counts: Counter[str]
    image: str = ""
    pod: str = ""
    pods: int = 0
    config: pb.PodSandboxConfig | None = None
    stopped: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    _line: AsyncExitStack = field(default_factory=AsyncExitStack)
    _cri: CriClient | None = None

    async def work(self, operations: int) -> None:
        """So many steps."""
        async with self._line:
            for _ in range(operations):
                await self.step()

    async def ask(self, call: Callable[[Kubelet], Awaitable[T]]) -> T:
        """The answer, asked for again and again while there is nobody to give it."""
        with anyio.fail_after(_PATIENCE):
            while True:
                try:
                    return await call(await self._kubelet())
                except CriError as exc:
                    if exc.code is Status.UNAVAILABLE:
                        await self._hang_up()
                    elif INJECTED not in exc.message:
                        raise
                except OSError:
                    await self._hang_up()
                await anyio.sleep(0.02)

    async def _kubelet(self) -> Kubelet:
        if self._cri is None:
            self._cri = await self._line.enter_async_context(connect(self.node.socket, wait=30))
        kubelet = Kubelet(self.node, self._cri, self.handler)
        if self.config is not None:
            kubelet.configs[self.pod] = self.config
        return kubelet

    async def _hang_up(self) -> None:
        self._cri = None
        await self._line.aclose()

    async def step(self) -> None:
        """One operation, and the comparison."""
        choices = self._choices()
        name = self.chance.choice(sorted(choices))
        await choices[name]()
        self.counts[name.rstrip("012")] += 1
        await self.compare()

    def _choices(self) -> Steps:
        if not self.pod:
            return {"RunPodSandbox": self._run}
        if self.chance.random() < _LAST or self.stopped:
            return {"RemovePodSandbox": self._remove_pod} if self.stopped else {"StopPodSandbox": self._stop_pod}
        found: dict[str, Callable[[], Awaitable[None]]] = {"reads": self._reads}
        if self.chance.random() < _IMAGES:
            return {"PullImage": self._pull, "RemoveImage": self._remove_image}
        if len(self.members) < _MOST:
            found |= {f"CreateContainer{n}": self._create for n in range(2)}
        for phase in {member.phase for member in self.members.values()}:
            found |= self._of_phase(phase)
        return found

    def _of_phase(self, phase: Phase) -> Steps:
        if phase is Phase.CREATED:
            return {"RemoveContainer": self._remove} | {f"StartContainer{n}": self._start for n in range(3)}
        if phase is Phase.RUNNING:
            return {
                "ExecSync": self._exec,
                "StopContainer": self._stop,
                "ReopenContainerLog": self._reopen,
                "UpdateContainerResources": self._update,
                "RemoveContainer": self._remove,
            }
        return {"RemoveContainer": self._remove}

    def _one(self, *phases: Phase) -> str:
        return self.chance.choice(sorted(ident for ident, member in self.members.items() if not phases or member.phase in phases))

    async def _run(self) -> None:
        self.pods += 1
        some = Kubelet(self.node, None, self.handler)  # type: ignore[arg-type]  # it only builds the configuration
        self.config = some.pod_config(f"chaos-{self.number}-{self.pods}")
        self.pod = await self.ask(lambda kubelet: kubelet.run(config=self.config))
        self.stopped = False

    async def _create(self) -> None:
        attempt = self.counts["created"]
        self.counts["created"] += 1
        member = Member(f"c{self.chance.randrange(10**6)}", attempt, Phase.CREATED)
        metadata = pb.ContainerMetadata(name=member.name, attempt=attempt)
        ident = await self.ask(lambda kubelet: kubelet.create(self.pod, _SCRIPT, member.name, metadata=metadata))
        self.members[ident] = member

    async def _start(self) -> None:
        ident = self._one(Phase.CREATED)
        try:
            await self.ask(lambda kubelet: kubelet.start(ident))
        except CriError as exc:  # it is not "created" any more: a start that was cut off may have come through, or was told as failed
            if exc.code not in (Status.FAILED_PRECONDITION, Status.INTERNAL):
                raise
        status = await self.ask(lambda kubelet: kubelet.status(ident))
        self._agree(ident, status)
        assert self.members[ident].phase is not Phase.CREATED, f"StartContainer was answered, and it is {status}"

    async def _exec(self) -> None:
        ident = self._one(Phase.RUNNING)
        try:
            answer = await self.ask(lambda kubelet: kubelet.exec(ident, "echo said; exit 4"))
        except CriError as exc:
            if exc.code not in (Status.FAILED_PRECONDITION, Status.INTERNAL):
                raise
            return  # ended meanwhile: the comparison says whether it may have
        assert (answer.stdout, answer.exit_code) in ((b"said\n", 4), (b"", 137), (b"said\n", 137)), answer

    async def _stop(self) -> None:
        ident = self._one(Phase.RUNNING)
        await self.ask(lambda kubelet: kubelet.stop(ident, self.chance.choice((0, 2, 10))))
        self.members[ident].phase = Phase.EXITED

    async def _reopen(self) -> None:
        ident = self._one(Phase.RUNNING)
        try:
            await self.ask(lambda kubelet: kubelet.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=ident)))
        except CriError as exc:
            if exc.code not in (Status.FAILED_PRECONDITION, Status.UNIMPLEMENTED, Status.INTERNAL):
                raise

    async def _update(self) -> None:
        ident = self._one(Phase.RUNNING)
        wanted = pb.LinuxContainerResources(memory_limit_in_bytes=self.chance.randrange(64, 256) << 20)
        request = pb.UpdateContainerResourcesRequest(container_id=ident, linux=wanted)
        try:
            await self.ask(lambda kubelet: kubelet.cri.runtime.update_container_resources(request))
        except CriError as exc:
            if exc.code not in (Status.FAILED_PRECONDITION, Status.INTERNAL):
                raise

    async def _remove(self) -> None:
        ident = self._one()
        await self.ask(lambda kubelet: kubelet.remove(ident))
        del self.members[ident]

    async def _stop_pod(self) -> None:
        await self.ask(lambda kubelet: kubelet.stop_pod(self.pod))
        self.stopped = True
        for member in self.members.values():
            if member.phase is Phase.RUNNING:
                member.phase = Phase.EXITED

    async def _remove_pod(self) -> None:
        pod = self.pod
        await self.ask(lambda kubelet: kubelet.stop_pod(pod))
        await self.ask(lambda kubelet: kubelet.remove_pod(pod))
        self.pod, self.config = "", None
        self.members.clear()

    async def _reads(self) -> None:
        with anyio.fail_after(_READ_SECONDS + 30):
            await self.ask(lambda kubelet: kubelet.cri.runtime.status())
            await self.ask(lambda kubelet: kubelet.cri.image.list_images())

    async def _pull(self) -> None:
        wanted = pb.PullImageRequest(image=pb.ImageSpec(image=self.image))
        try:
            pulled = (await self.ask(lambda kubelet: kubelet.cri.image.pull_image(wanted))).image_ref
        except CriError as exc:
            if exc.code is not Status.UNKNOWN:  # as which a kubelet is told of what went wrong with a registry
                raise
            return
        assert pulled, "a pull without an image"

    async def _remove_image(self) -> None:
        wanted = pb.RemoveImageRequest(image=pb.ImageSpec(image=self.image))
        await self.ask(lambda kubelet: kubelet.cri.image.remove_image(wanted))

    async def compare(self) -> None:
        """What the server tells of the pod against what the model knows."""
        if not self.pod:
            return
        asked = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=self.pod))
        listed = {each.id: each for each in (await self.ask(lambda kubelet: kubelet.cri.runtime.list_containers(asked))).containers}
        assert set(listed) == set(self.members), f"listed {sorted(listed)}, known {sorted(self.members)}"
        for ident in listed:
            self._agree(ident, await self.ask(lambda kubelet: kubelet.status(ident)))  # noqa: B023
        status = await self.ask(lambda kubelet: kubelet.pod_status(self.pod))
        ready = status.state is pb.PodSandboxState.SANDBOX_READY
        assert ready is not self.stopped, f"pod {self.pod}: {status}"

    def _agree(self, ident: str, status: pb.ContainerStatus) -> None:
        """``status`` must be what the model knows, or what a crash may have made of it, with the reason that says so."""
        member = self.members[ident]
        told = _STATES.get(int(status.state))
        assert told is not None, f"its state is unknown: {status}"
        if told != member.phase:
            started = member.phase is Phase.CREATED and told == Phase.RUNNING
            lost = (
                told == Phase.EXITED and member.phase is not Phase.EXITED and (status.reason in _LOST or status.exit_code in (255, 3, 137))
            )
            assert started or lost, f"known as {member.phase}, told as {status}"
            self.counts["lost"] += lost
            member.phase = Phase(told)
        if told == Phase.EXITED:
            assert status.reason, status
            assert status.finished_at, status


@dataclass
class Chaos:
    """What goes wrong meanwhile. ``faults`` of them are counted by name."""

    node: DaemonNode
    control: Control
    chance: random.Random
    points: list[str]
    counts: Counter[str]
    longest: float = 2.0

    async def run(self, over: anyio.Event) -> None:
        """Until ``over``; the server runs then."""
        while not over.is_set():
            with anyio.move_on_after(self.chance.uniform(0.05, self.longest)):
                await over.wait()
            fault = self.chance.choice((*FAULTS_AMID, "error"))
            self.counts[fault] += 1
            await self._happen(fault)

    async def _happen(self, fault: str) -> None:
        if fault == "error":
            self.control.arm(self.chance.choice(self.points), fail=True)
            return
        if fault in ("kill-monitor", "kill-both"):
            await self.node.kill_monitor()
        if fault == "restart":
            await run_sync(self.node.stop)
        elif fault != "kill-monitor":
            await run_sync(self.node.kill)
        if fault == "kill-starting":
            self.node.spawn()
            await anyio.sleep(self.chance.uniform(0.2, 0.9))
            await run_sync(self.node.kill)
        if fault != "kill-monitor":
            self.control.disarm()
            await self.node.restart()
