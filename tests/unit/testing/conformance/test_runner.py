"""How the suite goes on when a pod of it can't be removed. Server and host are stand-ins here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.config import Handler
from bridge.errors import HostError
from bridge.testing.conformance import runner
from bridge.testing.conformance.catalogue import Spec
from bridge.testing.conformance.node import Node
from bridge.testing.conformance.results import Outcome, Report
from bridge.testing.conformance.runner import Conformance
from bridge.testing.conformance.stage import Stage
from bridge.testing.conformance.target import Target
from bridge.testing.leaks import Scope, Snapshot


class FakeRuntime:
    """Pods of which some can't be removed, as their plugin's ``delete`` raises."""

    def __init__(self) -> None:
        self.pods: list[str] = []
        self.broken = {"first"}
        self.tried: list[str] = []

    async def list_pod_sandbox(self, _request: object) -> pb.ListPodSandboxResponse:
        metadata = pb.PodSandboxMetadata(namespace="conformance")
        return pb.ListPodSandboxResponse(items=[pb.PodSandbox(id=pod, metadata=metadata) for pod in self.pods])

    async def stop_pod_sandbox(self, request: pb.StopPodSandboxRequest) -> None:
        self.tried.append(request.pod_sandbox_id)
        if request.pod_sandbox_id in self.broken:
            raise CriError(Status.INTERNAL, "handler mine, plugin mine: delete failed: AttributeError: no attribute 'x'")

    async def remove_pod_sandbox(self, request: pb.RemovePodSandboxRequest) -> None:
        self.pods.remove(request.pod_sandbox_id)


class FakeNode:
    """As much of a Node as a run of specs asks for."""

    def __init__(self) -> None:
        self.target = Target("mine", Handler(plugin="mine"))
        self.socket = Path("/none.sock")
        self.private = self.network = True
        self.server = None
        self.stuck: set[str] = set()
        self.remains: list[str] = []

    def log_tail(self) -> str:
        return ""

    def log_directory(self, _pod: str) -> Path:
        raise HostError("no room for the log of a pod")

    async def pids(self) -> list[int]:
        return []

    def scope(self, _pids: Sequence[int]) -> Scope:
        return Scope(roots=[])

    async def left(self, _scope: Scope, _before: Snapshot) -> Sequence[str]:
        return list(self.remains)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()

    @asynccontextmanager
    async def connect(_socket: Path, *, wait: float = 0.0) -> AsyncIterator[Any]:
        yield SimpleNamespace(runtime=fake)

    monkeypatch.setattr(runner, "connect", connect)
    return fake


def spec(name: str, runtime: FakeRuntime, failure: Exception | None = None) -> Spec:
    async def check(_stage: Stage) -> None:
        runtime.pods.append(name)
        if failure is not None:
            raise failure

    return Spec(name, "group", "purpose", "source", check)


def test_a_pod_that_cannot_be_removed_fails_its_spec_and_no_other(runtime: FakeRuntime) -> None:
    node = FakeNode()
    suite = Conformance(cast("Node", node), Report("mine", "mine", "1", "", "s", "h"), {})
    node.remains = ["cgroup: of the first"]  # as everything of such a pod is still there, which need not be told line by line
    first = suite.run(spec("first", runtime))
    node.remains = []
    second = suite.run(spec("second", runtime))
    assert first.outcome is Outcome.FAILED
    assert first.reason.startswith("left behind: pod first, which can't be removed: INTERNAL: handler mine")
    assert "AttributeError" in first.reason
    assert "cgroup" not in first.reason
    assert second.outcome is Outcome.PASSED
    assert runtime.tried == ["first", "second"]  # the broken one is not tried again
    assert suite.report.results == (first, second)


def test_what_else_is_left_fails_a_spec(runtime: FakeRuntime) -> None:
    node = FakeNode()
    node.remains = ["mount: /x"]
    suite = Conformance(cast("Node", node), Report("mine", "mine", "1", "", "s", "h"), {})
    assert suite.run(spec("second", runtime)).reason == "left behind: mount: /x"


def test_what_a_spec_itself_says_comes_before_what_it_could_not_remove(runtime: FakeRuntime) -> None:
    suite = Conformance(cast("Node", FakeNode()), Report("mine", "mine", "1", "", "s", "h"), {})
    assert suite.run(spec("first", runtime, AssertionError("4 is not 3"))).reason == "4 is not 3"


def test_a_warm_up_whose_pod_stays_does_not_end_the_run(runtime: FakeRuntime) -> None:
    node = FakeNode()
    suite = Conformance(cast("Node", node), Report("mine", "mine", "1", "", "s", "h"), {})
    runtime.pods = ["first"]
    anyio.run(runner._warm, suite)
    assert node.stuck == {"first"}
