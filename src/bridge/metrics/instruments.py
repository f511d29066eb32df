"""What is counted as it happens: RPCs, phases of pods' starts, pulls, exits. Labels are of few values, never ids or names of pods.

A registry's name comes from whoever writes a pod, so that only the first ones get a label of their own.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, Counter, Histogram

from bridge import log
from bridge.core.entities import Container
from bridge.core.store import Change, Store
from bridge.errors import BridgeError, LimitExceeded
from bridge.ports.handlers import Handlers

_logger = log.get("metrics")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_PULL_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_REGISTRIES = 32
"""Registries with a label of their own; the rest are "other"."""
_REASONS = {"Completed": "completed", "OOMKilled": "oom_killed", "StartError": "start_error", "ContainerCannotRun": "start_error"}


class Instruments:
    """Observer of ``api.calls`` and ``core.trace``, watcher of ``images.progress``, and two tasks. Never raises, never waits."""

    def __init__(self, registry: CollectorRegistry, store: Store, handlers: Handlers) -> None:
        self._store = store
        self._handlers = handlers
        self._registries: set[str] = set()
        self.rpcs = Counter("cri_bridge_rpcs", "RPCs that have ended, by gRPC code.", ["rpc", "handler", "code"], registry=registry)
        self.rpc_seconds = Histogram(
            "cri_bridge_rpc_duration_seconds", "Time to answer unary RPCs.", ["rpc", "handler"], buckets=_SECONDS, registry=registry
        )
        self.phase_seconds = Histogram(
            "cri_bridge_phase_duration_seconds",
            "Steps of making and removing pods and containers; phase total is the whole.",
            ["operation", "phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.phase_failures = Counter("cri_bridge_phase_failures", "Steps that failed.", ["operation", "phase"], registry=registry)
        self.pulls = Counter("cri_bridge_image_pulls", "Pulls and imports that have ended.", ["registry", "result"], registry=registry)
        self.pull_seconds = Histogram(
            "cri_bridge_image_pull_duration_seconds", "Time of pulls.", ["registry"], buckets=_PULL_SECONDS, registry=registry
        )
        self.pull_bytes = Counter("cri_bridge_image_pull_bytes", "Compressed bytes of layers received.", ["registry"], registry=registry)
        self.pull_layers = Counter("cri_bridge_image_pull_layers", "Layers that pulls added.", ["registry"], registry=registry)
        self.exits = Counter("cri_bridge_container_exits", "Containers that ended, by reason.", ["handler", "reason"], registry=registry)
        self.ooms = Counter("cri_bridge_container_oom_kills", "Containers that ran out of memory.", ["handler"], registry=registry)
        for state in handlers.states():
            self.ooms.labels(state.name)  # 0 from the start: else nobody sees that the first one is an increase
        self.missed = Counter("cri_bridge_changes_missed", "Times that changes came faster than they were counted.", registry=registry)
        self.lag_seconds = Histogram(
            "cri_bridge_event_loop_lag_seconds", "How late the event loop wakes a sleeper.", buckets=_SECONDS, registry=registry
        )

    def handler_of(self, request: Any) -> str:
        """See api.calls.Observer. A handler's name counts only if it is configured or on a record."""
        try:
            if sandbox_id := getattr(request, "pod_sandbox_id", ""):
                return self._store.sandbox(sandbox_id).handler
            if container_id := getattr(request, "container_id", ""):
                return self._of(self._store.container(container_id))
        except BridgeError:
            return ""
        name = getattr(request, "runtime_handler", None)
        if not isinstance(name, str):
            return ""
        name = name or self._handlers.default
        return name if any(state.name == name for state in self._handlers.states()) else ""

    def called(self, rpc: str, handler: str, code: str, seconds: float, *, streaming: bool) -> None:
        """See api.calls.Observer."""
        self.rpcs.labels(rpc or "unknown", handler, code).inc()
        if rpc and not streaming:
            self.rpc_seconds.labels(rpc, handler).observe(seconds)

    def span(self, operation: str, name: str, seconds: float, failed: bool) -> None:
        """See core.trace.Observer. The name of a whole holds its container's, and a backend's its handler's."""
        first = name.partition(" ")[0]
        phase = "total" if first == operation else first if first == "backend" and name not in _BACKEND_VERBS else name
        self.phase_seconds.labels(operation, phase).observe(seconds)
        if failed:
            self.phase_failures.labels(operation, phase).inc()

    def pulled(self, reference: str, seconds: float, layers: int, *, failed: bool) -> None:
        """See images.progress.Watcher."""
        registry = self._registry(reference)
        self.pulls.labels(registry, "failure" if failed else "success").inc()
        self.pull_seconds.labels(registry).observe(seconds)
        if not failed:
            self.pull_layers.labels(registry).inc(layers)

    def received(self, reference: str, size: int) -> None:
        """See images.progress.Watcher."""
        self.pull_bytes.labels(self._registry(reference)).inc(size)

    async def count_exits(self) -> None:
        """Count each container that ends, for ever."""
        while True:
            try:
                async with self._store.changes.subscribe() as changes:
                    async for change in changes:
                        self.changed(change)
            except LimitExceeded:
                self.missed.inc()
                _logger.warning("metrics were too slow for the changes and missed some")

    def changed(self, change: Change) -> None:
        """Count one change, if it is a container's end."""
        if change.event not in ("exited", "start-failed", "abandoned") or not isinstance(change.after, Container):
            return
        handler, reason = self._of(change.after), _REASONS.get(change.after.reason, "error")
        self.exits.labels(handler, reason).inc()
        if reason == "oom_killed":
            self.ooms.labels(handler).inc()

    async def measure_lag(self, every: float = 1.0) -> None:
        """Sleep and see how late it ends, for ever."""
        while True:
            due = time.monotonic() + every
            await anyio.sleep(every)
            self.lag_seconds.observe(max(0.0, time.monotonic() - due))

    def _of(self, container: Container) -> str:
        sandbox = self._store.sandboxes.get(container.sandbox_id)
        return sandbox.handler if sandbox else ""

    def _registry(self, reference: str) -> str:
        name = "archive" if reference.startswith("/") or not reference else reference.partition("/")[0]
        if name not in self._registries:
            if len(self._registries) >= _REGISTRIES:
                return "other"
            self._registries.add(name)
        return name


_BACKEND_VERBS = ("backend stop", "backend delete")
"""Spans of these names are steps; any other ``backend NAME`` is a sandbox's start by the handler NAME."""
