"""Checkpoints that are interrupted, of containers and of pods, and pods that are made of one. Only where CRIU works on this node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import anyio
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.crash.stages import EXITED, RUNNING, Operation, Stage, alive, running
from tests.integration.daemon_node import Kubelet

_OUT, _POD = "out.tar", "pod.tar"


def criu_works() -> bool:
    """Whether ``criu check`` says so."""
    path = shutil.which("criu")
    return path is not None and subprocess.run([path, "check"], capture_output=True, timeout=60, check=False).returncode == 0


async def _checkpoint(kubelet: Kubelet, stage: Stage) -> None:
    request = pb.CheckpointContainerRequest(container_id=stage.container, location=str(stage.spare / _OUT))
    await kubelet.cri.runtime.checkpoint_container(request)


async def _goes_on(kubelet: Kubelet, stage: Stage) -> None:
    """The container goes on, nothing half-written is beside the archive, and the next try succeeds."""
    await _settled(stage.spare)
    if (await kubelet.status(stage.container)).state is EXITED:  # CRIU was killed amid its work, which a process may not survive
        await kubelet.remove(stage.container)
        (stage.spare / "up").unlink(missing_ok=True)
        await kubelet.remove_pod(stage.pod)
        await running(kubelet, stage)
    await alive(kubelet, stage)
    await _checkpoint(kubelet, stage)
    await alive(kubelet, stage)
    kept = [path.name for path in (kubelet.node.root / "state" / "images" / "snapshots").glob("*/checkpoint")]
    assert not kept, "directories of a checkpoint that nobody makes"


async def _settled(spare: Path) -> None:
    names = sorted(path.name for path in spare.iterdir())
    assert set(names) <= {"up", _OUT, _POD}, names


async def _pod_checkpointed(kubelet: Kubelet, stage: Stage) -> None:
    await running(kubelet, stage)
    path = str(stage.spare / _POD)
    await kubelet.cri.runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id=stage.pod, output_path=path))
    await kubelet.remove_pod(stage.pod)


async def _restore_pod(kubelet: Kubelet, stage: Stage) -> None:
    answer = await kubelet.cri.runtime.restore_pod(pb.RestorePodRequest(checkpoint_path=str(stage.spare / _POD)))
    stage.pod, stage.container = answer.pod_sandbox_id, answer.restored_containers[0].container_id


async def _is_restored(kubelet: Kubelet, stage: Stage) -> None:
    """It is there as a whole, or as nothing, and then it can be made again."""
    await _settled(stage.spare)
    with anyio.fail_after(60):
        while True:
            try:
                await _restore_pod(kubelet, stage)
            except CriError as exc:
                if exc.code is not Status.ALREADY_EXISTS:
                    raise
            else:
                break
            if all(each.state is RUNNING for each in (await kubelet.cri.runtime.list_containers()).containers):
                for found in (await kubelet.cri.runtime.list_pod_sandbox()).items:  # its answer was lost
                    await kubelet.remove_pod(found.id)
            await anyio.sleep(0.1)  # else it is being undone
    await alive(kubelet, stage)


async def _is_removed(kubelet: Kubelet, stage: Stage) -> None:
    await kubelet.remove_pod(stage.pod)


CHECKPOINT_OPERATIONS = [
    Operation("CheckpointContainer", running, _checkpoint, _goes_on),
    Operation("RestorePod", _pod_checkpointed, _restore_pod, _is_restored, _is_removed),
]
