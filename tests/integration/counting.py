"""Containers that count, for what must go on where a checkpoint was made; and whether a handler has checkpoints here."""

from __future__ import annotations

import json

import anyio

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient
from tests.integration.daemon_node import Kubelet

COUNTING = "rm /etc/group; echo hi > /new; i=0; while :; do i=$((i+1)); echo $i > /n; echo count $i; sleep 0.1; done"


async def missing(cri: CriClient, handler: str) -> str:
    """Why this handler has no checkpoints here; "" when it has."""
    info = (await cri.runtime.status(pb.StatusRequest(verbose=True))).info
    support, _, detail = json.loads(info["handlers"])["handlers"][handler]["abilities"]["checkpoint"].partition(": ")
    return str(detail) if support == "unsupported" else ""


async def count(kubelet: Kubelet, container: str, above: int = 0, *, within: float = 20) -> int:
    """Wait until it has counted further."""
    with anyio.fail_after(within):
        while True:
            answer = await kubelet.exec(container, "cat /n")
            if answer.stdout.strip() and int(answer.stdout) > above:
                return int(answer.stdout)
            await anyio.sleep(0.05)
