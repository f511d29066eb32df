"""Checkpoints over the real server: written and restored by CRIU where the node has one that works, else refused in its words.

CRIU is sought in PATH, or where the variable CRIU says; `criu check` decides, and a runtime that was built for it.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.counting import COUNTING, count, missing
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root


async def checkpoint(kubelet: Kubelet, container: str, location: Path) -> None:
    await kubelet.cri.runtime.checkpoint_container(pb.CheckpointContainerRequest(container_id=container, location=str(location)))


async def refused(kubelet: Kubelet, container: str, pod: str, tmp_path: Path, why: str) -> None:
    with pytest.raises(CriError) as failure:
        await checkpoint(kubelet, container, tmp_path / "out.tar")
    assert (failure.value.code, why in str(failure.value)) == (Status.FAILED_PRECONDITION, True)
    with pytest.raises(CriError) as failure:
        await kubelet.create(pod, name="again", image=pb.ImageSpec(image=str(tmp_path / "out.tar")))
    assert (failure.value.code, why in str(failure.value)) == (Status.FAILED_PRECONDITION, True)
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod, output_path=str(tmp_path / "pod.tar"))
    with pytest.raises(CriError) as failure:
        await kubelet.cri.runtime.checkpoint_pod(request)
    assert (failure.value.code, why in str(failure.value)) == (Status.FAILED_PRECONDITION, True)


async def test_a_container_goes_on_where_its_checkpoint_was_made(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, COUNTING)
    before = await count(kubelet, container)
    why = await missing(kubelet.cri, kubelet.handler)
    if why:
        await refused(kubelet, container, pod, tmp_path, why)
        assert await count(kubelet, container, before) > before
        pytest.skip(f"refused as it should be, but {kubelet.handler} has no checkpoints here: {why}")
    out = tmp_path / "out.tar"
    await checkpoint(kubelet, container, out)
    reached = await count(kubelet, container, before)
    with tarfile.open(out) as archive:
        names = archive.getnames()
        config = archive.extractfile("config.dump")
        assert config is not None
        assert json.loads(config.read())["id"] == container
    assert {"spec.dump", "deleted.files", "rootfs-diff.tar", "checkpoint/inventory.img", "checkpoint/pstree.img"} <= set(names)
    assert out.stat().st_mode & 0o777 == 0o600
    await kubelet.stop(container, 0)

    other = await kubelet.run()
    again = await kubelet.create(other, name="again", image=pb.ImageSpec(image=str(out)))
    await kubelet.start(again)
    verbose = await kubelet.cri.runtime.container_status(pb.ContainerStatusRequest(container_id=again, verbose=True))
    cgroup = Path(f"/proc/{json.loads(verbose.info['info'])['pid']}/cgroup").read_text()
    assert again in cgroup, "where the limits of its own pod hold"
    assert container not in cgroup
    assert before <= await count(kubelet, again) <= reached + 5
    assert await kubelet.output(again, "cat /new; ls /etc/group 2>&1 || true") == "hi\nls: /etc/group: No such file or directory"
    address = (await kubelet.pod_status(other)).network
    assert address is not None
    assert address.ip in await kubelet.output(again, "ip -4 addr 2>/dev/null || ifconfig")
    assert (await kubelet.log(other, "again", until=bool))[0].startswith("stdout F count ")
    with anyio.fail_after(30):
        while True:
            stats = (await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=again))).stats
            if stats is not None and stats.cpu is not None and stats.cpu.usage_core_nano_seconds is not None:
                break
            await anyio.sleep(0.2)
    assert stats.cpu.usage_core_nano_seconds.value
    checked = tmp_path / "second.tar"
    await checkpoint(kubelet, again, checked)  # a restored one is like any other
    await kubelet.stop(again, 0)
    assert (await kubelet.status(again)).exit_code == 137


async def test_a_pod_is_made_again_from_its_archive(kubelet: Kubelet, tmp_path: Path) -> None:
    if why := await missing(kubelet.cri, kubelet.handler):
        pytest.skip(f"{kubelet.handler} has no checkpoints here: {why}")
    pod = await kubelet.run()
    one, two = await kubelet.started(pod, COUNTING, "one"), await kubelet.started(pod, COUNTING, "two")
    before = [await count(kubelet, each) for each in (one, two)]
    out = tmp_path / "pod.tar"
    await kubelet.cri.runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id=pod, output_path=str(out)))
    reached = [await count(kubelet, each, least) for each, least in zip((one, two), before, strict=True)]
    await kubelet.remove_pod(pod)
    answer = await kubelet.cri.runtime.restore_pod(pb.RestorePodRequest(checkpoint_path=str(out)))
    try:
        assert [each.name for each in answer.restored_containers] == ["one", "two"]
        for each, least, most in zip(answer.restored_containers, before, reached, strict=True):
            assert least <= await count(kubelet, each.container_id) <= most + 10
            assert (await kubelet.status(each.container_id)).image_id
    finally:
        await kubelet.remove_pod(answer.pod_sandbox_id)
