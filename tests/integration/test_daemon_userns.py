"""Pods in a user namespace of their own, on the real runtimes: who owns what on both sides, and that nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, Status
from tests.integration.daemon_fixtures import handler, kubelet, node, own_node
from tests.integration.daemon_node import DaemonNode, Kubelet

__all__ = ["handler", "kubelet", "node", "own_node"]
pytestmark = pytest.mark.root

CONTAINER, POD, NODE = pb.NamespaceMode.CONTAINER, pb.NamespaceMode.POD, pb.NamespaceMode.NODE
UIDS = [pb.IdMapping(host_id=100000, container_id=0, length=65536)]
GIDS = [pb.IdMapping(host_id=300000, container_id=0, length=65536)]


def mapped(*, pid: pb.NamespaceMode = CONTAINER) -> pb.NamespaceOption:
    return pb.NamespaceOption(pid=pid, userns_options=pb.UserNamespace(mode=POD, uids=UIDS, gids=GIDS))


async def test_owners_on_both_sides(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=mapped())
    container = await kubelet.started(pod, "echo direct; echo again > /dev/stdout; exec sleep 1000", options=mapped())
    out = kubelet.output
    assert (await out(container, "cat /proc/self/uid_map")).split() == ["0", "100000", "65536"]
    assert (await out(container, "cat /proc/self/gid_map")).split() == ["0", "300000", "65536"]
    print(await out(container, "id; mount; ls -la / /dev /etc /sys/fs/cgroup; ip a; ls /proc/sys"))
    print(await kubelet.log(pod, until=lambda lines: len(lines) >= 2))
