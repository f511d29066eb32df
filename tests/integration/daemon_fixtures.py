"""Fixtures of the suites over the real daemon: one server a module, a kubelet a test, the leak audit at the end of each."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from bridge.client import connect
from tests.conftest import LeakAudit
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server with runc and crun, in which each has run a pod already: what is made once and kept is there."""
    with daemon_node() as made:
        anyio.run(_warm, made)
        yield made


async def _warm(node: DaemonNode) -> None:
    async with connect(node.socket) as cri:
        for handler in node.handlers:
            kubelet = Kubelet(node, cri, handler)
            container = await kubelet.started(await kubelet.run())
            await kubelet.exec(container, "true")
            await kubelet.clean()


@pytest.fixture(params=["runc", "crun"])
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def kubelet(node: DaemonNode, handler: str, leak_audit: LeakAudit) -> AsyncIterator[Kubelet]:
    """A connected kubelet; its pods are removed, and then nothing of them may be left."""
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        made = Kubelet(node, cri, handler)
        yield made
        await made.clean()


@pytest.fixture
def own_node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server of the test's own, to be killed; what its pods used must be back when the test ends."""
    with daemon_node() as made:
        anyio.run(_warm, made)
        audit = LeakAudit()
        scope = made.scope()
        late = [made.root / "run" / "runtimes" / name for name in ("late", "probe-late.json")]
        audit.watch(dataclasses.replace(scope, pids=[], shared=[*scope.shared, *late]))
        yield made
        left = audit.leaks()
        assert not left, "left behind:\n" + "\n".join(left) + f"\n{made.server_log[-6000:]}"
