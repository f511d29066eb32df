"""Where a pod's start spent its time: named spans, kept per pod in memory.

``with trace.recording(traces, id): …`` makes a trace current for the task; ``with trace.span("cni add")`` adds to it
(and is a no-op without one). The newest traces stay readable for ``cri-bridge trace POD``; ``Traces.observer`` counts
the same spans, and ``Traces.tracer`` sends them to who collects traces.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Span:
    """One step. ``start`` is Unix nanoseconds, ``duration`` nanoseconds; ``depth`` 0 is a request.

    ``trace_id`` is the hexadecimal id under which a tracer sends it, "" when none does.
    """

    name: str
    start: int
    duration: int = 0
    depth: int = 0
    failed: bool = False
    trace_id: str = ""


Observer = Callable[[str, str, float, bool], None]
"""Told of each span that ends: operation (RunPodSandbox), phase (its own name again for the whole), seconds, whether it failed."""


class Tracer(Protocol):
    """Follows each span while it runs, and nests what the same task begins inside it. Neither may wait or raise."""

    def begin(self, span: Span, pod: str, container: str) -> Any:
        """``span`` of ``pod``, and of ``container`` if it is about one, begins. Sets its trace id; gives what ``end`` gets."""

    def end(self, begun: Any, failure: str) -> None:
        """It ends, in the same task; ``failure`` says why it failed, "" if it did not."""


@dataclass(slots=True)
class Traces:
    """The newest ``limit`` pods' spans, in order of their start."""

    limit: int = 512
    pods: OrderedDict[str, list[Span]] = field(default_factory=OrderedDict)
    observer: Observer | None = None
    tracer: Tracer | None = None

    def of(self, sandbox_id: str) -> list[Span]:
        """Spans of one pod; empty when unknown."""
        return list(self.pods.get(sandbox_id, ()))

    def forget(self, sandbox_id: str) -> None:
        """Drop a removed pod."""
        self.pods.pop(sandbox_id, None)

    def _spans(self, sandbox_id: str) -> list[Span]:
        spans = self.pods.setdefault(sandbox_id, [])
        while len(self.pods) > self.limit:
            self.pods.popitem(last=False)
        return spans


@dataclass(frozen=True, slots=True)
class _Open:
    traces: Traces
    spans: list[Span]
    operation: str
    pod: str
    container: str
    depth: int = 0

    @property
    def followed(self) -> bool:
        """Somebody hears of spans, also of those that no list has room for."""
        return self.traces.observer is not None or self.traces.tracer is not None


_current: ContextVar[_Open | None] = ContextVar("bridge_trace", default=None)
_SPANS_PER_POD = 256


@contextlib.contextmanager
def recording(traces: Traces, sandbox_id: str, name: str, container_id: str = "") -> Iterator[None]:
    """Record the block, and every span inside it, as request ``name`` of the pod, about the container if one is given."""
    token = _current.set(_Open(traces, traces._spans(sandbox_id), name.partition(" ")[0], sandbox_id, container_id))
    try:
        with span(name):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Time the block under ``name`` in the current trace, if there is one."""
    trace = _current.get()
    if trace is None or (len(trace.spans) >= _SPANS_PER_POD and not trace.followed):
        yield
        return
    entry = Span(name, time.time_ns(), depth=trace.depth)
    if len(trace.spans) < _SPANS_PER_POD:
        trace.spans.append(entry)
    began = time.perf_counter_ns()
    token = _current.set(
        _Open(trace.traces, trace.spans, trace.operation, trace.pod, trace.container, trace.depth + 1)
    )  # a task started inside the block gets it too
    tracer, failure = trace.traces.tracer, ""
    begun = tracer.begin(entry, trace.pod, trace.container) if tracer is not None else None
    try:
        yield
    except BaseException as exc:
        entry.failed = True
        failure = str(exc) or type(exc).__name__  # the words alone: the error holds this frame
        raise
    finally:
        _current.reset(token)
        entry.duration = time.perf_counter_ns() - began
        if tracer is not None:
            tracer.end(begun, failure)
        if trace.traces.observer is not None:
            trace.traces.observer(trace.operation, name, entry.duration / 1e9, entry.failed)
