"""What the operations of the sweep share: the stage that one works on, and how a kubelet comes to it while nothing goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as pb
from tests.integration.daemon_node import Kubelet

FAULTS = ("kill-server", "kill-monitor", "kill-both", "cancel", "error", "hang")
RUNNING, EXITED, CREATED = (
    pb.ContainerState.CONTAINER_RUNNING,
    pb.ContainerState.CONTAINER_EXITED,
    pb.ContainerState.CONTAINER_CREATED,
)
_TRAPS = "trap 'exit 3' TERM; touch /flags/up; while :; do sleep 0.02; done"
COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"


@dataclass
class Stage:
    """What an operation works on: the ids that ``prepare`` left. ``spare`` is a directory of the run's own, mounted at /flags.

    ``fault`` is what happens to ``act``; "" when nothing does.
    """

    spare: Path
    config: pb.PodSandboxConfig
    pod: str = ""
    container: str = ""
    image: str = ""
    fault: str = ""
    others: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return Path(self.config.log_directory) / "app.log"

    @property
    def monitor_lost(self) -> bool:
        """Whether the fault took the monitor away, and on an older kernel the exits with it."""
        return self.fault in ("kill-monitor", "kill-both")


Step = Callable[[Kubelet, Stage], Awaitable[None]]


async def nothing(_kubelet: Kubelet, _stage: Stage) -> None:
    """It needs nothing, or leaves nothing."""


@dataclass(frozen=True)
class Operation:
    """One of a kubelet's or of the node. ``prepare`` makes what it needs, while nothing goes wrong. ``act`` is the operation, the server
    may be killed amid it. ``again`` is what a kubelet does next, when all is well again, until it has what it wants; ``act`` may have
    succeeded, failed, or never been heard of again. ``tidy`` takes back what is not the kubelet's to take back.

    ``faults`` are those that mean anything amid it. ``reads``: List and Status must answer while it hangs.
    """

    name: str
    prepare: Step
    act: Step
    again: Step
    tidy: Step = nothing
    faults: Sequence[str] = FAULTS
    reads: bool = True


async def pod(kubelet: Kubelet, stage: Stage) -> None:
    """A pod."""
    stage.pod = await kubelet.run(config=stage.config)


async def made(kubelet: Kubelet, stage: Stage, command: str = _TRAPS, *, stdin: bool = False) -> None:
    """A container in the pod."""
    kubelet.configs[stage.pod] = stage.config
    mount = pb.Mount(container_path="/flags", host_path=str(stage.spare))
    stage.container = await kubelet.create(stage.pod, command, mounts=[mount], stdin=stdin)


async def created(kubelet: Kubelet, stage: Stage) -> None:
    """A pod with a container."""
    await pod(kubelet, stage)
    await made(kubelet, stage)


async def running(kubelet: Kubelet, stage: Stage) -> None:
    """A pod with a container that runs, and says at SIGTERM 3."""
    await created(kubelet, stage)
    await kubelet.start(stage.container)
    with anyio.fail_after(30):
        while not (stage.spare / "up").exists():
            await anyio.sleep(0.01)


async def writing(kubelet: Kubelet, stage: Stage) -> None:
    """A pod with a container that counts."""
    await pod(kubelet, stage)
    await made(kubelet, stage, COUNTS)
    await kubelet.start(stage.container)


async def alive(kubelet: Kubelet, stage: Stage) -> None:
    """The container runs."""
    assert (await kubelet.output(stage.container, "echo alive")) == "alive"
