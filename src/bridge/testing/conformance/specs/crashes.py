"""The monitor is killed, alone or with the server: nothing hangs, nothing that is gone is told as running, all can be removed."""

from __future__ import annotations

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.specs.restarts import Scene, scene
from bridge.testing.conformance.stage import READY, RUNNING, Stage

_LOST = (255, "MonitorLost")


async def _ready(stage: Stage) -> None:
    async def look() -> bool:
        status = (await stage.cri.runtime.status(pb.StatusRequest())).status
        return status is not None and all(each.status for each in status.conditions)

    await stage.until(look, "the server is not ready again")


async def _goes_on(stage: Stage, made: Scene) -> None:
    """What ran runs, can be used, and ends with its own code, or with the one that says that nobody could know."""
    assert (await stage.pod_status(made.pod)).state is READY
    assert (await stage.status(made.after)).state is RUNNING
    assert await stage.output(made.after, "echo exec") == "exec"
    made.go("after")
    await _ended(stage, made.after, 8)
    await stage.stop(made.polite, int(stage.patience))
    await _ended(stage, made.polite, 3)
    await stage.start(made.made)
    assert await stage.output(made.made, "echo new") == "new"
    another = await stage.started(made.pod, "echo words; exit 4", name="another")
    assert (await stage.exited(another)).exit_code == 4
    await stage.log(made.pod, "another", until=lambda lines: any(line.text == b"words" for line in lines))


async def _ended(stage: Stage, container: str, code: int) -> None:
    status = await stage.exited(container)
    told = (status.exit_code, status.reason)
    assert status.exit_code == code or told == _LOST, f"ended with {code}, and is told as {told}"
    if told == _LOST:
        stage.note(f"an exit with {code} that nobody could wait for is told as 255, MonitorLost")


@spec("kill -9 of the monitor", kills=True, quick=True, timeout=120)
async def monitor_is_killed(stage: Stage) -> None:
    """The monitor is killed while containers run and write: they go on, are watched again, and end with their code or as MonitorLost"""
    made = await scene(stage)
    await stage.node.kill_monitor()
    made.go("during")
    await _ready(stage)
    await _ended(stage, made.during, 7)
    await _goes_on(stage, made)


@spec("kill -9 of server and monitor", kills=True, timeout=120)
async def both_are_killed(stage: Stage) -> None:
    """Server and monitor are killed together: the next ones find what runs and what has ended"""
    made = await scene(stage)
    await stage.node.kill()
    await stage.node.kill_monitor()
    made.go("during")
    await stage.node.start()
    await _ready(stage)
    await _ended(stage, made.during, 7)
    await _goes_on(stage, made)
