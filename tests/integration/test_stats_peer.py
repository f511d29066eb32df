"""The same pod on containerd and here: what it tells of it, we tell too, and the numbers are of one size."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from betterproto2 import Message

from bridge._proto.runtime import v1 as pb
from bridge.client import connect
from bridge.wire.wiretypes import fields_of
from tests.integration.containerd_node import cri_peer
from tests.integration.daemon_fixtures import audited_node
from tests.integration.daemon_node import DaemonNode, Kubelet
from tests.integration.stats_truth import MIB, eventually, value, worked

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd")]


@pytest.fixture
def node() -> Iterator[DaemonNode]:
    with audited_node(handlers={"runc": "runc"}, stats=["layer_period = 1.0"]) as made:
        yield made


@pytest.fixture
async def ours(node: DaemonNode) -> AsyncIterator[Kubelet]:
    async with connect(node.socket) as cri:
        made = Kubelet(node, cri, "runc")
        yield made
        await made.clean()


def shape(message: Any, path: str = "") -> set[str]:
    """The fields that are set, at any depth; those of all items of a list as one."""
    if isinstance(message, list):
        return set().union(*(shape(each, path) for each in message))
    if not isinstance(message, Message):
        return {path} if message else set()
    names = [field.name for field in fields_of(type(message))]
    here = {path} if path else set()
    return here.union(*(shape(each, f"{path}.{name}") for name in names if (each := getattr(message, name)) is not None))


async def told(kubelet: Kubelet) -> tuple[pb.ContainerStats, pb.PodSandboxStats]:
    """Of a pod with a container that has worked, once every part was measured and the rate is known."""
    pod = await kubelet.run()
    container, _ = await worked(kubelet, pod)
    found: list[Any] = []

    async def complete() -> bool:
        mine = (await kubelet.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=container))).stats
        whole = (await kubelet.cri.runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))).stats
        found[:] = [mine, whole]
        assert mine is not None
        assert whole is not None
        assert whole.linux is not None
        rates = [each is not None and each.usage_nano_cores is not None for each in (mine.cpu, whole.linux.cpu)]
        return all(rates) and mine.writable_layer is not None and value(mine.writable_layer.used_bytes) > 5 * MIB

    await eventually(complete)
    return found[0], found[1]


async def test_what_containerd_tells_we_tell_too(node: DaemonNode, ours: Kubelet, tmp_path: Path) -> None:
    async with cri_peer(tmp_path / "containerd", node) as peer, anyio.create_task_group() as group:
        found: dict[Kubelet, tuple[pb.ContainerStats, pb.PodSandboxStats]] = {}

        async def ask(kubelet: Kubelet) -> None:
            found[kubelet] = await told(kubelet)

        group.start_soon(ask, ours)
        group.start_soon(ask, peer)
    (mine, my_pod), (theirs, their_pod) = found[ours], found[peer]
    zero = {f".memory{field}" for field in (".available_bytes", ".available_bytes.value")}  # which it tells of what has no limit
    assert shape(theirs) - shape(mine) == set()
    assert shape(their_pod) - shape(my_pod) - {f".linux{each}" for each in zero} == set()
    assert mine.memory is not None
    assert theirs.memory is not None
    for field, most in (("usage_bytes", 8), ("working_set_bytes", 8), ("rss_bytes", 2), ("available_bytes", 8)):
        pair = [value(getattr(each, field)) for each in (mine.memory, theirs.memory)]
        assert abs(pair[0] - pair[1]) <= most * MIB, (field, pair)
    assert mine.writable_layer is not None
    assert theirs.writable_layer is not None
    assert abs(value(mine.writable_layer.used_bytes) - value(theirs.writable_layer.used_bytes)) <= MIB
    assert my_pod.linux is not None
    assert their_pod.linux is not None
    networks = [each.network for each in (my_pod.linux, their_pod.linux)]
    names = [each.default_interface.name for each in networks if each is not None and each.default_interface is not None]
    assert names == ["eth0", "eth0"]
