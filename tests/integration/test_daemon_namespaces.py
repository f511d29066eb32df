"""Namespaces of the node, the pod and a container on the real runtimes, and what may not be mixed."""

from __future__ import annotations

import os
import socket

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet, mark, processes

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

POD, CONTAINER, NODE, TARGET = pb.NamespaceMode.POD, pb.NamespaceMode.CONTAINER, pb.NamespaceMode.NODE, pb.NamespaceMode.TARGET


def options(
    *, pid: pb.NamespaceMode = CONTAINER, network: pb.NamespaceMode = POD, ipc: pb.NamespaceMode = POD, target_id: str = ""
) -> pb.NamespaceOption:
    return pb.NamespaceOption(network=network, pid=pid, ipc=ipc, target_id=target_id)


async def seen(kubelet: Kubelet, container: str) -> dict[str, str]:
    kinds = ("net", "ipc", "uts", "pid", "mnt", "user")
    links = (await kubelet.output(container, "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds))).split()
    return dict(zip(kinds, links, strict=True))


OWN = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts", "pid", "mnt", "user")}


async def test_namespaces_of_the_node(kubelet: Kubelet) -> None:
    wanted = options(network=NODE, pid=NODE, ipc=NODE)
    pod = await kubelet.run(options=wanted)
    word = mark(9876)
    container = await kubelet.started(pod, f"sleep {word} & exec sleep 1000", options=options(pid=POD), name="unset")
    found = await seen(kubelet, container)
    assert {kind for kind, link in found.items() if link == OWN[kind]} == {"net", "ipc", "uts", "pid", "user"}
    assert await kubelet.output(container, "hostname") == socket.gethostname()
    assert await kubelet.output(container, f"ls -d /proc/{os.getpid()}") == f"/proc/{os.getpid()}"
    await kubelet.stop(container, 0)
    with anyio.fail_after(5):  # its children live in the node's PID namespace and die all the same
        while processes(word):
            await anyio.sleep(0.02)


async def test_each_container_its_own_or_all_the_pods(kubelet: Kubelet) -> None:
    apart, together = await kubelet.run(), await kubelet.run(options=options(pid=POD))
    found: list[dict[str, str]] = []
    for pod, mode in ((apart, CONTAINER), (apart, POD), (together, POD), (together, POD), (together, CONTAINER)):
        container = await kubelet.started(pod, options=options(pid=mode), name=f"c{len(found)}")
        found.append(await seen(kubelet, container))
    assert len({each["pid"] for each in found}) == 4, "the two in the shared one have the same"
    assert found[2]["pid"] == found[3]["pid"]
    for kind in ("net", "ipc", "uts"):
        assert len({each[kind] for each in found}) == 2, "one a pod"
        assert OWN[kind] not in {each[kind] for each in found}


async def test_targets(kubelet: Kubelet) -> None:
    pod, other = await kubelet.run(options=options(pid=POD)), await kubelet.run()
    target, stranger = await kubelet.started(pod, options=options(), name="target"), await kubelet.started(other)
    ended = await kubelet.started(pod, "exit 0", options=options(), name="ended")
    await kubelet.exited(ended)
    shared = await kubelet.started(pod, options=options(pid=POD), name="shared")

    async def debug(ident: str, name: str) -> str:
        return await kubelet.started(pod, options=options(pid=TARGET, target_id=ident), name=name)

    for ident, name in ((target, "one"), (shared, "two")):
        assert (await seen(kubelet, await debug(ident, name)))["pid"] == (await seen(kubelet, ident))["pid"]
    for ident, code in ((stranger, Status.INVALID_ARGUMENT), (ended, Status.FAILED_PRECONDITION), ("f" * 64, Status.NOT_FOUND)):
        with pytest.raises(CriError, match=r"namespace_options\.target_id|not found") as caught:
            await debug(ident, "no")
        assert caught.value.code is code
    with pytest.raises(CriError, match=r"namespace_options\.pid: TARGET is for containers only"):
        await kubelet.run(options=options(pid=TARGET, target_id=target))


async def test_a_container_can_not_leave_its_pods_namespaces(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    wanted = {"network": options(network=NODE), "pid": options(pid=NODE), "ipc": options(ipc=NODE)}
    for kind, contradiction in wanted.items():
        with pytest.raises(CriError, match=rf"namespace_options\.{kind}: NODE contradicts the pod's") as caught:
            await kubelet.create(pod, options=contradiction)
        assert caught.value.code is Status.INVALID_ARGUMENT


async def test_message_queues_are_the_pods(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    one, two = await kubelet.started(pod, name="one"), await kubelet.started(pod, name="two")
    elsewhere = await kubelet.started(await kubelet.run())
    await kubelet.output(one, "touch /dev/mqueue/queue /dev/shm/memory")
    assert await kubelet.output(two, "ls /dev/mqueue /dev/shm | grep -E 'queue|memory' | wc -l") == "3"
    assert await kubelet.output(elsewhere, "ls /dev/mqueue /dev/shm | wc -l") == "3", "two headings and a blank line"
