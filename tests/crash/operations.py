"""What is interrupted: one operation of a kubelet each, with what comes before it, its repetition, and what must hold at its end.

See stages.Operation. Those of streams and of the node itself are in modules of their own; OPERATIONS has all.
"""

from __future__ import annotations

import anyio
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.crash.checkpoint_operations import CHECKPOINT_OPERATIONS, criu_works
from tests.crash.node_operations import NODE_OPERATIONS
from tests.crash.stages import CREATED, EXITED, RUNNING, Operation, Stage, created, made, nothing, pod, running, writing
from tests.crash.stream_operations import STREAM_OPERATIONS
from tests.integration.daemon_node import Kubelet, log_lines

_MEMORY = 96 << 20


async def _waiting(kubelet: Kubelet, stage: Stage) -> None:
    await pod(kubelet, stage)
    await made(kubelet, stage, "until [ -e /flags/go ]; do sleep 0.02; done; echo last; exit 7")
    await kubelet.start(stage.container)


async def _stopped(kubelet: Kubelet, stage: Stage) -> None:
    await running(kubelet, stage)
    await kubelet.stop(stage.container, 0)


async def _pod_stopped(kubelet: Kubelet, stage: Stage) -> None:
    await running(kubelet, stage)
    await kubelet.stop_pod(stage.pod)


async def _ready(kubelet: Kubelet, stage: Stage) -> None:
    await pod(kubelet, stage)
    status = await kubelet.pod_status(stage.pod)
    assert status.state is pb.PodSandboxState.SANDBOX_READY, status
    assert status.network is not None
    assert status.network.ip, "a pod without address"


async def _startable(kubelet: Kubelet, stage: Stage) -> None:
    await made(kubelet, stage)
    assert (await kubelet.status(stage.container)).state is CREATED
    await kubelet.start(stage.container)
    assert (await kubelet.status(stage.container)).state is RUNNING


async def _start(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.start(stage.container)


async def _started(kubelet: Kubelet, stage: Stage) -> None:
    """It runs, or it is told as lost and makes room for the next attempt."""
    try:
        await kubelet.start(stage.container)
    except CriError as exc:
        if exc.code not in (Status.FAILED_PRECONDITION, Status.INTERNAL):
            raise
    status = await kubelet.status(stage.container)
    if status.state is RUNNING:
        assert (await kubelet.output(stage.container, "echo alive")) == "alive"
        return
    assert status.state is EXITED, status
    assert status.reason, "an end without a reason"
    await kubelet.remove(stage.container)
    await _startable(kubelet, stage)


async def _exec(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.exec(stage.container, "echo said; exit 5")


async def _execs(kubelet: Kubelet, stage: Stage) -> None:
    answer = await kubelet.exec(stage.container, "echo said; exit 5")
    assert (answer.stdout, answer.exit_code) == (b"said\n", 5)


async def _stop(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.stop(stage.container, 10)


async def _is_stopped(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.stop(stage.container, 10)
    status = await kubelet.status(stage.container)
    assert status.state is EXITED, status
    assert status.exit_code == 3 or (stage.monitor_lost and (status.exit_code, status.reason) == (255, "MonitorLost")), status


async def _remove(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.remove(stage.container)


async def _is_removed(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.remove(stage.container)
    assert not (await kubelet.cri.runtime.list_containers()).containers
    await _startable(kubelet, stage)  # its name is free again


async def _stop_pod(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.stop_pod(stage.pod)


async def _pod_is_stopped(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.stop_pod(stage.pod)
    assert (await kubelet.pod_status(stage.pod)).state is pb.PodSandboxState.SANDBOX_NOTREADY
    assert (await kubelet.status(stage.container)).state is EXITED


async def _remove_pod(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.remove_pod(stage.pod)


async def _pod_is_removed(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.remove_pod(stage.pod)
    assert not (await kubelet.cri.runtime.list_pod_sandbox()).items
    await _ready(kubelet, stage)  # its name is free again


async def _update(kubelet: Kubelet, stage: Stage) -> None:
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=_MEMORY)
    await kubelet.cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=stage.container, linux=wanted))


async def _is_updated(kubelet: Kubelet, stage: Stage) -> None:
    await _update(kubelet, stage)
    resources = (await kubelet.status(stage.container)).resources
    assert resources is not None
    assert resources.linux is not None
    assert resources.linux.memory_limit_in_bytes == _MEMORY


async def _reopen(kubelet: Kubelet, stage: Stage) -> None:
    if stage.log.exists():
        stage.log.rename(stage.log.with_suffix(".1"))
    await kubelet.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=stage.container))


async def _is_reopened(kubelet: Kubelet, stage: Stage) -> None:
    try:
        await kubelet.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=stage.container))
    except CriError as exc:
        if exc.code is not Status.UNIMPLEMENTED:
            raise
        return  # server and monitor were killed together: nobody has its pipes any more, and a kubelet is told so
    with anyio.fail_after(30):
        while not log_lines(stage.log):
            await anyio.sleep(0.02)


async def _end(kubelet: Kubelet, stage: Stage) -> None:
    """The container ends by itself."""
    (stage.spare / "go").touch()
    await kubelet.exited(stage.container)


async def _has_ended(kubelet: Kubelet, stage: Stage) -> None:
    status = await kubelet.exited(stage.container)
    assert status.exit_code == 7 or (stage.monitor_lost and status.reason == "MonitorLost"), status


async def _pull(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.cri.image.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image=stage.image)))


async def _is_pulled(kubelet: Kubelet, stage: Stage) -> None:
    await _pull(kubelet, stage)
    await image_removed(kubelet, stage)


async def _remove_image(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=stage.image)))


async def image_removed(kubelet: Kubelet, stage: Stage) -> None:
    """Remove the image: nothing of it is damaged or left in the index."""
    await _remove_image(kubelet, stage)
    asked = pb.ImageStatusRequest(image=pb.ImageSpec(image=stage.image))
    assert (await kubelet.cri.image.image_status(asked)).image is None
    checked = await kubelet.cri.admin.check_images(admin.CheckImagesRequest(full=True))
    assert not checked.damaged, checked
    assert not checked.index_faults, checked


OPERATIONS = [
    Operation("RunPodSandbox", nothing, pod, _ready),
    Operation("CreateContainer", pod, made, _startable),
    Operation("StartContainer", created, _start, _started),
    Operation("ExecSync", running, _exec, _execs),
    Operation("StopContainer", running, _stop, _is_stopped),
    Operation("RemoveContainer", _stopped, _remove, _is_removed),
    Operation("StopPodSandbox", running, _stop_pod, _pod_is_stopped),
    Operation("RemovePodSandbox", _pod_stopped, _remove_pod, _pod_is_removed),
    Operation("UpdateContainerResources", running, _update, _is_updated),
    Operation("ReopenContainerLog", writing, _reopen, _is_reopened),
    Operation("exit", _waiting, _end, _has_ended),
    Operation("PullImage", nothing, _pull, _is_pulled),
    Operation("RemoveImage", _pull, _remove_image, image_removed),
    *STREAM_OPERATIONS,
    *NODE_OPERATIONS,
    *(CHECKPOINT_OPERATIONS if criu_works() else ()),
]
"""``StopContainer`` may find the exit lost when the monitor was killed on a kernel that can't tell it (before 6.15)."""
