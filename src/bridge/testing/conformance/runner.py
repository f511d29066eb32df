"""Runs specs, one at a time, against one server, and judges how each ended."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, connect
from bridge.errors import BridgeError, Unavailable
from bridge.testing.conformance.catalogue import Spec
from bridge.testing.conformance.judging import judge
from bridge.testing.conformance.node import Node, opened
from bridge.testing.conformance.results import Costs, Declared, Report, Result
from bridge.testing.conformance.stage import Stage
from bridge.testing.conformance.target import Target
from bridge.testing.leaks import snapshot

_PATIENCE = 20.0
"""Seconds that a condition may take to come true, times the target's slowness."""
_PATIENCE_WITH_LIMITS = 5.0
_CLEAN_SECONDS = 120.0


class Conformance:
    """A server with the handler under test. Made by ``conformance``; ``run`` blocks."""

    def __init__(self, node: Node, report: Report, limits: Mapping[str, str]) -> None:
        self.node = node
        self._limits = limits
        self.report = report

    def run(self, spec: Spec) -> Result:
        """Run ``spec`` and add its result to the report."""
        result = anyio.run(self._run, spec)
        self.report = replace(self.report, results=(*self.report.results, result))
        return result

    async def _run(self, spec: Spec) -> Result:
        began = time.monotonic()
        stage: Stage | None = None
        failure: Exception | None = None
        left: Sequence[str] = ()
        async with connect(self.node.socket, wait=_PATIENCE) as cri:
            # What is known to fail need not be waited for as long.
            patience = _PATIENCE_WITH_LIMITS if spec.name in self._limits else _PATIENCE
            stage = Stage(self.node, cri, self.report.declared, patience * self.node.target.slowness)
            try:
                self._possible(spec, stage)
                left = await self._audited(spec, stage)
            except Exception as exc:  # noqa: BLE001 - any failure is the spec's result
                failure = exc
        self._measure(stage)
        seconds = time.monotonic() - began
        outcome, reason = judge(spec, self.report.declared, self._limits, failure, left, self.node.log_tail())
        return Result(spec.name, spec.group, spec.purpose, spec.source, outcome, seconds, reason, tuple(stage.notes))

    def _possible(self, spec: Spec, stage: Stage) -> None:
        if spec.kills and not self.node.private:
            stage.not_here("the server is not the suite's own (--socket), so neither it nor its monitor is killed")
        if spec.network and not self.node.network:
            stage.not_here("no CNI plugins bridge and host-local here, so pods have the host's network")

    async def _audited(self, spec: Spec, stage: Stage) -> Sequence[str]:
        """Run it and remove its pods; what is left of them."""
        scope = self.node.scope([] if spec.kills else await self.node.pids())
        before = await run_sync(lambda: snapshot(scope, without=["descriptor"] if spec.kills else []))
        stuck: Sequence[str] = ()
        try:
            with anyio.fail_after(spec.timeout * self.node.target.slowness):
                await spec.check(stage)
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _CLEAN_SECONDS):
                await self._revive()
                stuck = await stage.clean()
        # All that belongs to such a pod is still there: dozens of lines that tell nothing more, and nothing to wait for.
        return stuck or await self.node.left(scope, before)

    async def _revive(self) -> None:
        """A spec that failed while the server was away must not take the others along."""
        server = self.node.server
        if server is not None and server.pid is None:
            await self.node.start()

    def _measure(self, stage: Stage) -> None:
        known = {field.name for field in dataclasses.fields(Costs)} & set(stage.measured)
        found: dict[str, Any] = {name: stage.measured[name] for name in known}
        for name in ("pods", "memory_bytes"):
            if name in found:
                found[name] = round(found[name])
        self.report = replace(self.report, costs=replace(self.report.costs, **found))


@contextmanager
def conformance(target: Target) -> Iterator[Conformance]:
    """A ready suite for ``target``; the report is complete when the block is left. Blocks. Raises as ``opened``, Unavailable."""
    made: Conformance | None = None
    try:
        with opened(target) as node:
            made = anyio.run(_introduce, node)
            anyio.run(_warm, made)
            yield made
    finally:
        if made is not None:
            made.report = replace(made.report, left_behind=tuple(node.left_behind))


async def _warm(suite: Conformance) -> None:
    """Run a pod, so that what is made once and kept is there. Whether it works is for the specs to tell."""
    node = suite.node
    async with connect(node.socket) as cri:
        stage = Stage(node, cri, suite.report.declared, _PATIENCE * node.target.slowness)
        with suppress(BridgeError, AssertionError):
            container = await stage.started(await stage.pod())
            await stage.exec(container, "true")
        # One that can't be removed is what each of the specs meets with a pod of its own.
        await stage.clean()


async def _introduce(node: Node) -> Conformance:
    name = node.target.name
    async with connect(node.socket) as cri:
        handler = await _handler(cri, name)
        version = await cri.runtime.version()
    declared = tuple(Declared(ability, *_support(text)) for ability, text in sorted(handler["abilities"].items()))
    limits = {**_plugin_limits(node.target, handler["version"]), **node.target.limits}
    server = f"{version.runtime_name} {version.runtime_version}"
    host = f"Linux {platform.release()} {platform.machine()}"
    return Conformance(
        node, Report(name, handler["plugin"], _one_line(handler["version"]), handler["path"], server, host, declared), limits
    )


async def _handler(cri: CriClient, name: str) -> Mapping[str, Any]:
    info = (await cri.runtime.status(pb.StatusRequest(verbose=True))).info
    if "handlers" not in info:
        raise Unavailable("the server's Status tells nothing of its handlers: is it cri-bridge?")
    handlers = json.loads(info["handlers"])["handlers"]
    if name not in handlers:
        raise Unavailable(f"the server has no handler {name!r}; there are: {', '.join(sorted(handlers))}")
    if not handlers[name]["enabled"]:
        raise Unavailable(f"handler {name} is disabled: {handlers[name]['reason']}")
    return dict(handlers[name])


def _support(text: str) -> tuple[str, str]:
    support, _, detail = text.partition(": ")
    return support, detail


def _one_line(version: str) -> str:
    return version.strip().splitlines()[0] if version.strip() else "unknown"


def _plugin_limits(target: Target, version: str) -> Mapping[str, str]:
    """What the plugin itself announces of this version of its runtime."""
    announced = target.announced
    if announced is None or announced.conformance_limits is None:
        return {}
    return announced.conformance_limits(announced.options.model_validate(dict(target.handler.options)), version)
