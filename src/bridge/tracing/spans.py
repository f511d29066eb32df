"""Spans of OpenTelemetry: one for each RPC, below it one for each step that ``core.trace`` times, and of each pull.

The parent of an RPC's span is what the caller's metadata say (W3C Trace Context); that of a step is what its task is in. A step that
outlives its RPC keeps the trace; what begins when that span has ended already is a trace of its own, with a link to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any

from grpclib.const import Status
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge.api.calls import Headers
from bridge.core.store import Store
from bridge.core.trace import Span as Step
from bridge.errors import BridgeError

POD_ID = "cri_bridge.pod_sandbox.id"
HANDLER = "cri_bridge.handler"
REQUEST = "cri_bridge.request"
"""The id of the RPC in the log."""
IMAGE, LAYER = "container.image.name", "cri_bridge.layer.digest"
WORDS = 1024
"""Characters of one attribute or of a failure's words: names and messages come from whoever writes pods."""
_FAULTS = frozenset(
    (Status.UNKNOWN, Status.DEADLINE_EXCEEDED, Status.UNIMPLEMENTED, Status.INTERNAL, Status.UNAVAILABLE, Status.DATA_LOSS)
)  # of the server; the others are the caller's. Source: semantic conventions for gRPC, span status
_CALLERS = ("traceparent", "tracestate")
_propagator = TraceContextTextMapPropagator()


class _Metadata(Getter[dict[str, list[str]]]):
    def get(self, carrier: dict[str, list[str]], key: str) -> list[str] | None:
        return carrier.get(key)

    def keys(self, carrier: dict[str, list[str]]) -> list[str]:
        return list(carrier)


_metadata = _Metadata()


def caller(headers: Iterable[tuple[str, str]]) -> Context:
    """The caller's span, nothing when it names none, two, or one that is wrong. A tracestate that is wrong or long is left away."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _CALLERS:
            found.setdefault(name, []).append(value)
    if len(found.get("traceparent", ())) != 1:
        return Context()
    return _propagator.extract(found, Context(), _metadata)


class Spans:
    """Tracer of ``api.calls``, ``core.trace`` and ``images.progress``. Never raises, never waits."""

    def __init__(self, tracer: trace.Tracer, store: Store) -> None:
        self._tracer = tracer
        self._store = store

    def begin_rpc(self, path: str, headers: Headers, request: str, *, known: bool) -> RpcSpan:
        """See api.calls.Tracer. The path of a method that is not served names nothing: it is whatever a caller sends."""
        attributes = {"rpc.system": "grpc", REQUEST: request}
        if known:
            service, _, method = path.removeprefix("/").partition("/")
            attributes |= {"rpc.service": service, "rpc.method": method}
        name = path.removeprefix("/") if known else "unknown method"
        span = self._tracer.start_span(name, caller(headers), SpanKind.SERVER, attributes)
        return RpcSpan(span, self)

    def begin(self, span: Step, pod: str, container: str) -> tuple[trace.Span, Token[Context], str] | None:
        """See core.trace.Tracer."""
        parent = trace.get_current_span()
        sampled = parent.get_span_context()
        if sampled.is_valid and not sampled.trace_flags.sampled:
            return None
        whole = span.depth == 0
        if whole and isinstance(parent, ReadableSpan) and parent.end_time is not None:
            made = self._tracer.start_span(span.name, Context(), links=[Link(sampled)])
        else:
            made = self._tracer.start_span(span.name)
        if made.is_recording():
            span.trace_id = f"{made.get_span_context().trace_id:032x}"
            if whole:
                self.describe(made, pod, container)
        return made, context.attach(trace.set_span_in_context(made)), pod if whole else ""

    def end(self, begun: tuple[trace.Span, Token[Context], str] | None, failure: str) -> None:
        """See core.trace.Tracer."""
        if begun is None:
            return
        span, token, pod = begun
        context.detach(token)
        if pod and span.is_recording():
            self.describe(span, pod, "")  # a new pod's record is younger than its span
        if failure:
            span.set_status(StatusCode.ERROR, failure[:WORDS])
        span.end()

    @contextmanager
    def step(self, name: str, image: str = "", layer: str = "") -> Iterator[None]:
        """See images.progress.Tracer."""
        begun, failure = self.begin(Step(name, 0, depth=0 if image else 1), "", ""), ""
        if begun is not None and begun[0].is_recording():
            for key, value in ((IMAGE, image), (LAYER, layer)):
                if value:
                    begun[0].set_attribute(key, value[:WORDS])
        try:
            yield
        except BaseException as exc:
            failure = str(exc) or type(exc).__name__
            raise
        finally:
            self.end(begun, failure)

    def describe(self, span: trace.Span, pod: str, container: str) -> None:
        """Say which pod and container it is about; ids may be prefixes, unknown ones, or empty."""
        try:
            if container:
                record = self._store.container(container)
                span.set_attribute("k8s.container.name", record.config.metadata.name[:WORDS])
                container, pod = record.id, record.sandbox_id
        except BridgeError:
            pass  # it does not exist: the RPC says so itself
        if container:
            span.set_attribute("container.id", container[:WORDS])
        if not pod:
            return
        span.set_attribute(POD_ID, pod[:WORDS])
        try:
            sandbox = self._store.sandbox(pod)
        except BridgeError:
            return
        span.set_attribute(POD_ID, sandbox.id)
        span.set_attribute(HANDLER, sandbox.handler)
        name_pod(span, sandbox.config.metadata)


def name_pod(span: trace.Span, metadata: Any) -> None:
    """``metadata`` has a pod's name, namespace and uid."""
    span.set_attribute("k8s.pod.name", metadata.name[:WORDS])
    span.set_attribute("k8s.namespace.name", metadata.namespace[:WORDS])
    span.set_attribute("k8s.pod.uid", metadata.uid[:WORDS])


class RpcSpan:
    """See api.calls.Span. Current in the task of the RPC, and so in what that starts."""

    __slots__ = ("_span", "_spans", "_token")

    def __init__(self, span: trace.Span, spans: Spans) -> None:
        self._span = span
        self._spans = spans
        self._token = context.attach(trace.set_span_in_context(span, Context()))

    def tell(self, message: Any) -> None:
        """Take from a request or an answer which pod, container and image it is about."""
        if not self._span.is_recording():
            return
        pod, container = getattr(message, "pod_sandbox_id", ""), getattr(message, "container_id", "")
        self._spans.describe(self._span, pod if isinstance(pod, str) else "", container if isinstance(container, str) else "")
        handler = getattr(message, "runtime_handler", "")
        if isinstance(handler, str) and handler:
            self._span.set_attribute(HANDLER, handler[:WORDS])
        metadata = getattr(getattr(message, "config", None), "metadata", None)
        if hasattr(metadata, "uid"):
            name_pod(self._span, metadata)
        elif isinstance(name := getattr(metadata, "name", None), str):
            self._span.set_attribute("k8s.container.name", name[:WORDS])
        image = getattr(getattr(message, "image", None), "image", None)
        if isinstance(image, str) and image:
            self._span.set_attribute(IMAGE, image[:WORDS])

    def end(self, status: Status, message: str) -> None:
        """Its status, as the caller gets it."""
        context.detach(self._token)
        self._span.set_attribute("rpc.grpc.status_code", status.value)
        if status in _FAULTS:
            self._span.set_status(StatusCode.ERROR, f"{status.name}: {message}"[:WORDS])
        self._span.end()
