"""Fixtures of the suites over the real daemon: one server a module, a kubelet a test, the leak audit at the end of each."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import anyio
import pytest

from bridge._proto.bridge.admin import v1 as admin
from bridge.client import CriClient, connect
from bridge.testing.leaks import Scope, Snapshot, difference, snapshot
from tests.conftest import LeakAudit
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server with runc and crun, in which each has run a pod already: what is made once and kept is there."""
    with daemon_node() as made:
        anyio.run(warm, made)
        yield made


async def usable(cri: CriClient, handlers: Collection[str]) -> None:
    """Wait until these handlers are: on a busy machine a probe may time out, and the server tries it again."""
    with anyio.fail_after(60):
        while True:
            found = {each.name: each.reason for each in (await cri.admin.handlers(admin.HandlersRequest())).handlers if not each.enabled}
            if not found.keys() & set(handlers):
                return
            await anyio.sleep(0.2)


async def warm(node: DaemonNode) -> None:
    """Have each handler run a pod."""
    async with connect(node.socket) as cri:
        await usable(cri, node.handlers)
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
    with audited_node() as made:
        yield made


@contextlib.contextmanager
def audited_node(**options: Any) -> Iterator[DaemonNode]:
    """A server with ``options`` (see daemon_node), to be killed; what its pods used must be back at the end."""
    with daemon_node(**options) as made:
        anyio.run(warm, made)
        late = [made.root / "run" / "runtimes" / name for name in ("late", "probe-late.json")]
        scope = made.scope()
        scope = dataclasses.replace(scope, pids=[], shared=[*scope.shared, *late])
        before = snapshot(scope)
        yield made
        deadline = time.monotonic() + 5
        while (left := _left(made, before, scope)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "left behind:\n" + "\n".join(left) + f"\n{made.server_log[-6000:]}"


def _left(node: DaemonNode, before: Snapshot, scope: Scope) -> list[str]:
    """The audit's findings. A monitor that was killed has a successor, which is to stay."""
    return [line for line in difference(before, snapshot(scope)) if f" {node.monitor_socket} " not in line]
