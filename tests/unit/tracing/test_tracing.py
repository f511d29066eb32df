"""Which spans come of RPCs and steps, whose children they are, what they say; and how batches are sent, or are not."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from grpclib.const import Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from bridge.config import Config
from bridge.core import trace
from bridge.core.store import Store
from bridge.daemon_settings import tracing
from bridge.errors import ConfigError, NotFound
from bridge.images.progress import Board
from bridge.tracing.batches import Batches, Pace
from bridge.tracing.provider import Connection, endpoint, exporter, overheard, pace, provider
from bridge.tracing.settings import TracingSettings
from bridge.tracing.spans import Spans

PATH = "/runtime.v1.RuntimeService/StartContainer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = ("traceparent", f"00-{TRACE}-{PARENT}-01")


class OneStore:
    """One pod with one container."""

    def sandbox(self, ident: str) -> object:
        if ident != "p1":
            raise NotFound(f"no pod {ident}")
        return SimpleNamespace(
            id="p1", handler="runc", config=SimpleNamespace(metadata=SimpleNamespace(name="web", namespace="ns", uid="u1"))
        )

    def container(self, ident: str) -> object:
        if ident != "c1":
            raise NotFound(f"no container {ident}")
        return SimpleNamespace(id="c1", sandbox_id="p1", config=SimpleNamespace(metadata=SimpleNamespace(name="app")))


class World:
    def __init__(self, sampler: Any = None) -> None:
        self.kept = InMemorySpanExporter()
        made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        made.add_span_processor(SimpleSpanProcessor(self.kept))
        self.spans = Spans(made.get_tracer("test"), cast("Store", OneStore()))
        self.traces = trace.Traces(tracer=self.spans)

    def rpc(self, *headers: tuple[str, str], path: str = PATH, known: bool = True) -> Any:
        return self.spans.begin_rpc(path, headers, "r-1", known=known)

    def named(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.kept.get_finished_spans()}


@pytest.fixture
def world() -> World:
    return World()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Of its trace and of its parent, "" for none."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else ""


def own(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def said(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_an_rpc_is_a_child_of_its_caller_and_its_steps_are_its_children(world: World) -> None:
    rpc = world.rpc((":path", PATH), CALLER, ("tracestate", "vendor=1"))
    rpc.tell(SimpleNamespace(container_id="c1"))
    with trace.recording(world.traces, "p1", "StartContainer app", "c1"):
        with trace.span("runtime"), trace.span("inside"):
            pass
        with trace.span("commit"):
            pass
    rpc.end(Status.OK, "")
    found = world.named()
    served, whole, runtime = found[PATH[1:]], found["StartContainer app"], found["runtime"]
    assert ids(served) == (TRACE, PARENT)
    assert served.context is not None
    assert served.context.trace_state.get("vendor") == "1"
    assert served.kind is SpanKind.SERVER
    assert ids(whole) == (TRACE, own(served))
    assert ids(runtime) == ids(found["commit"]) == (TRACE, own(whole))
    assert ids(found["inside"]) == (TRACE, own(runtime))
    about = {"k8s.pod.name": "web", "k8s.namespace.name": "ns", "k8s.pod.uid": "u1", "k8s.container.name": "app", "container.id": "c1"}
    about |= {"cri_bridge.pod_sandbox.id": "p1", "cri_bridge.handler": "runc"}
    grpc = {"rpc.system": "grpc", "rpc.service": "runtime.v1.RuntimeService", "rpc.method": "StartContainer", "rpc.grpc.status_code": 0}
    assert said(served) == {**about, **grpc, "cri_bridge.request": "r-1"}
    assert said(whole) == about
    assert served.status.status_code is StatusCode.UNSET
    assert [span.name for span in world.traces.of("p1")] == ["StartContainer app", "runtime", "inside", "commit"], (
        "the waterfall has the same"
    )
    assert {span.trace_id for span in world.traces.of("p1")} == {TRACE}


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (CALLER, CALLER),
        (("traceparent", f"ff-{TRACE}-{PARENT}-01"),),
        (("traceparent", f"00-{'0' * 32}-{PARENT}-01"),),
        (("traceparent", f"00-{TRACE}-{'0' * 16}-01"),),
        (("traceparent", f"00-{TRACE.upper()}-{PARENT}-01"),),
        (("traceparent", f"00-{TRACE}-{PARENT}-01-more"),),
        (("traceparent", f"01-{TRACE}-{PARENT}-01-{'x' * 9000}"),),
        (("Traceparent", CALLER[1]), ("tracestate", "vendor=1")),
    ],
)
def test_a_caller_that_names_no_span_or_a_wrong_one_gets_a_trace_of_its_own(world: World, headers: Sequence[tuple[str, str]]) -> None:
    world.rpc(*headers).end(Status.OK, "")
    trace_id, parent = ids(world.named()[PATH[1:]])
    assert trace_id != TRACE
    assert parent == ""


@pytest.mark.parametrize("state", ["x=" + "y" * 600, "no pair", "a=1,a=2,\x00=3"])
def test_a_tracestate_that_is_wrong_or_long_is_left_away_and_the_parent_kept(world: World, state: str) -> None:
    world.rpc(CALLER, ("tracestate", state)).end(Status.OK, "")
    served = world.named()[PATH[1:]]
    assert ids(served) == (TRACE, PARENT)
    assert served.context is not None
    assert not served.context.trace_state.get("x")


def test_a_caller_that_does_not_keep_its_trace_has_nothing_kept_here(world: World) -> None:
    rpc = world.rpc(("traceparent", f"00-{TRACE}-{PARENT}-00"))
    rpc.tell(SimpleNamespace(container_id="c1"))
    with trace.recording(world.traces, "p1", "StartContainer app"), trace.span("runtime"):
        pass
    rpc.end(Status.INTERNAL, "no")
    assert world.named() == {}
    assert [span.trace_id for span in world.traces.of("p1")] == ["", ""], "the waterfall has them all the same"


def test_a_caller_that_keeps_its_trace_is_followed_where_no_trace_begins() -> None:
    world = World(ParentBased(ALWAYS_OFF))
    world.rpc().end(Status.OK, "")
    with trace.recording(world.traces, "p1", "RemovePodSandbox"):
        pass
    assert world.named() == {}
    world.rpc(CALLER).end(Status.OK, "")
    assert ids(world.named()[PATH[1:]]) == (TRACE, PARENT)


def test_what_fails_says_so_and_a_callers_own_fault_is_none_of_the_server(world: World) -> None:
    world.rpc(path="/s/Internal").end(Status.INTERNAL, "broken " + "x" * 5000)
    world.rpc(path="/s/NotFound").end(Status.NOT_FOUND, "no pod")
    with pytest.raises(ValueError, match="no room"), trace.recording(world.traces, "p1", "RunPodSandbox"), trace.span("cni add"):
        raise ValueError("no room")
    found = world.named()
    status = found["s/Internal"].status
    assert (status.status_code, len(status.description or "")) == (StatusCode.ERROR, 1024)
    assert (said(found["s/Internal"])["rpc.grpc.status_code"], said(found["s/NotFound"])["rpc.grpc.status_code"]) == (13, 5)
    assert found["s/NotFound"].status.status_code is StatusCode.UNSET
    assert {found[name].status.description for name in ("cni add", "RunPodSandbox")} == {"no room"}


def test_requests_name_pods_and_images_before_there_is_a_record_and_unknown_ids_are_told_as_they_are(world: World) -> None:
    rpc = world.rpc(path="/s/Run")
    named = SimpleNamespace(metadata=SimpleNamespace(name="n" * 5000, namespace="ns", uid="u"))
    rpc.tell(SimpleNamespace(config=named, runtime_handler="crun"))
    rpc.tell(SimpleNamespace(pod_sandbox_id="x9"))
    rpc.end(Status.OK, "")
    rpc = world.rpc(path="/s/Create")
    image = SimpleNamespace(image="busybox")
    rpc.tell(
        SimpleNamespace(
            pod_sandbox_id="p1", config=SimpleNamespace(metadata=SimpleNamespace(name="side", attempt=0), image=image), image=image
        )
    )
    rpc.tell(SimpleNamespace(container_id="c9"))
    rpc.end(Status.OK, "")
    run, create = said(world.named()["s/Run"]), said(world.named()["s/Create"])
    assert len(str(run["k8s.pod.name"])) == 1024
    assert (run["cri_bridge.pod_sandbox.id"], run["cri_bridge.handler"]) == ("x9", "crun")
    assert (create["k8s.container.name"], create["container.id"], create["k8s.pod.name"]) == ("side", "c9", "web")
    assert create["container.image.name"] == "busybox"


def test_an_unknown_method_names_nothing(world: World) -> None:
    world.rpc(path="/whatever/a caller sends", known=False).end(Status.UNIMPLEMENTED, "unknown method")
    (span,) = world.kept.get_finished_spans()
    assert span.name == "unknown method"
    assert said(span) == {"rpc.system": "grpc", "cri_bridge.request": "r-1", "rpc.grpc.status_code": 12}


async def test_a_pull_and_its_steps_are_below_the_rpc_and_layers_below_the_pull(world: World) -> None:
    board = Board(lambda chain_id: False)
    board.tracer = world.spans

    async def layer(digest: str) -> None:
        with board.step("layer", layer=digest):
            await anyio.lowlevel.checkpoint()

    rpc = world.rpc(CALLER, path="/runtime.v1.ImageService/PullImage")

    async def pull() -> None:
        with board.pull("docker.io/library/busybox:1"):
            async with anyio.create_task_group() as group:
                group.start_soon(layer, "sha256:1")
                group.start_soon(layer, "sha256:2")
            with board.step("commit"):
                raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        await pull()
    rpc.end(Status.INTERNAL, "disk full")
    with board.pull("/archive.tar"):
        pass
    found = world.named()
    assert ids(found["pull"]) == (TRACE, own(found["runtime.v1.ImageService/PullImage"]))
    assert said(found["pull"]) == {"container.image.name": "docker.io/library/busybox:1"}
    below = [span for span in world.kept.get_finished_spans() if ids(span) == (TRACE, own(found["pull"]))]
    assert sorted(span.name for span in below) == ["commit", "layer", "layer"]
    assert {said(span)["cri_bridge.layer.digest"] for span in below if span.name == "layer"} == {"sha256:1", "sha256:2"}
    assert found["commit"].status.description == found["pull"].status.description == "disk full"
    assert ids(found["import"])[0] != TRACE


async def test_a_pull_of_a_caller_that_keeps_no_trace_makes_no_span(world: World) -> None:
    board = Board(lambda chain_id: False)
    board.tracer = world.spans
    rpc = world.rpc(("traceparent", f"00-{TRACE}-{PARENT}-00"), path="/runtime.v1.ImageService/PullImage")
    with board.pull("docker.io/library/busybox:1"), board.step("layer", layer="sha256:1"):
        pass
    rpc.end(Status.OK, "")
    assert world.named() == {}


async def test_a_flight_that_outlives_its_rpc_stays_in_the_trace_and_later_work_has_one_of_its_own_with_a_link(world: World) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def flight() -> None:
        with trace.recording(world.traces, "p1", "RunPodSandbox"):
            begun.set()
            await ended.wait()
            with trace.span("cni add"):
                pass
        with trace.recording(world.traces, "p1", "StopPodSandbox"):
            pass

    async with anyio.create_task_group() as group:
        rpc = world.rpc(CALLER)
        group.start_soon(flight)
        await begun.wait()
        rpc.end(Status.DEADLINE_EXCEEDED, "the caller's deadline passed")
        ended.set()
    found = world.named()
    assert ids(found["cni add"]) == (TRACE, own(found["RunPodSandbox"]))
    later = found["StopPodSandbox"]
    assert ids(later)[1] == ""
    assert [f"{link.context.trace_id:032x}" for link in later.links] == [TRACE]


def test_both_who_counts_and_who_traces_hear_of_steps(world: World) -> None:
    heard: list[tuple[str, str, bool]] = []
    world.traces.observer = lambda operation, name, seconds, failed: heard.append((operation, name, failed))
    with trace.recording(world.traces, "p1", "StartContainer app"), trace.span("runtime"):
        pass
    assert heard == [("StartContainer", "runtime", False), ("StartContainer", "StartContainer app", False)]
    assert world.named().keys() == {"runtime", "StartContainer app"}


class Collector(SpanExporter):
    """Takes batches while it is ``up``; one that is ``held`` waits."""

    def __init__(self) -> None:
        self.up = True
        self.held = threading.Event()
        self.held.set()
        self.tried = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.tried.release()
        self.held.wait(30)
        if self.up:
            self.batches.append([span.name for span in spans])
        return SpanExportResult.SUCCESS if self.up else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.held.set()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.held.set()


class Kept(logging.Handler):
    """The lines of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def ended(count: int, into: Batches) -> None:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(into)
    for number in range(count):
        made.get_tracer("test").start_span(f"s{number}").end()


def test_batches_are_bounded_and_the_last_are_sent_at_the_end(collector: Collector) -> None:
    batches = Batches(collector, Pace(queue=100, batch=4, period=1000), str)
    ended(4, batches)
    assert collector.tried.acquire(timeout=30), "a full batch goes at once"
    ended(3, batches)
    assert batches.close(30)
    assert [name for batch in collector.batches for name in batch] == ["s0", "s1", "s2", "s3", "s0", "s1", "s2"]
    assert max(map(len, collector.batches)) <= 4
    ended(1, batches)
    assert batches.dropped == 1


def test_a_collector_that_hangs_costs_no_more_than_the_queue_and_the_end_does_not_wait_for_it(collector: Collector) -> None:
    collector.held.clear()
    batches = Batches(collector, Pace(queue=10, batch=2, period=1000), str)
    ended(2, batches)
    assert collector.tried.acquire(timeout=30)
    ended(25, batches)
    assert batches.dropped == 15
    assert batches.close(0.05) is False
    collector.held.set()
    batches.close(30)  # joins the thread
    assert sum(map(len, collector.batches)) <= 2, "nothing more once the end did not wait"


def test_a_dead_collector_is_logged_once_and_so_is_its_return(collector: Collector) -> None:
    told = Kept()
    collector.up = False
    batches = Batches(collector, Pace(queue=10, batch=2, period=0.001), lambda: "connection refused")
    logger = logging.getLogger("bridge.tracing")
    logger.addHandler(told)
    logger.setLevel(logging.INFO)
    try:
        for _ in range(3):
            ended(1, batches)
            assert collector.tried.acquire(timeout=30)
        collector.up = True
        while not collector.batches:
            ended(1, batches)
            assert collector.tried.acquire(timeout=30)
        batches.close(30)
    finally:
        logger.removeHandler(told)
        logger.setLevel(logging.NOTSET)
    assert len(told.lines) == 2, told.lines
    assert told.lines[0].endswith("until that works again: connection refused")
    assert told.lines[1].startswith("traces are sent again")


def settings(**section: object) -> TracingSettings:
    found = tracing(Config.model_validate({"tracing": {"enabled": True, **section}}))
    assert found is not None
    return found


def test_options_come_before_the_environment_and_that_before_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = provider(settings())
    assert usual.resource.attributes["service.name"] == "cri-bridge"
    assert usual.sampler.get_description().startswith("ParentBased{root:AlwaysOnSampler")
    assert pace(settings()) == Pace(2048, 512, 5.0)
    for name, value in (
        ("OTEL_SERVICE_NAME", "node-7"),
        ("OTEL_RESOURCE_ATTRIBUTES", "zone=a,rack=r1"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "250"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "nonsense"),
    ):
        monkeypatch.setenv(name, value)
    by_environment = provider(settings())
    assert by_environment.sampler.get_description().startswith("ParentBased{root:AlwaysOffSampler")
    assert {name: by_environment.resource.attributes[name] for name in ("service.name", "zone", "rack")} == {
        "service.name": "node-7",
        "zone": "a",
        "rack": "r1",
    }
    assert pace(settings()) == Pace(100, 100, 0.25)
    by_options = provider(settings(service_name="mine", resource_attributes={"rack": "r2"}, sampling_ratio=0.25))
    assert by_options.sampler.get_description().startswith("ParentBased{root:TraceIdRatioBased{0.25}")
    assert (by_options.resource.attributes["service.name"], by_options.resource.attributes["rack"]) == ("mine", "r2")
    assert pace(settings(queue=50, period=2)) == Pace(50, 50, 2)


def test_nothing_is_set_up_unless_it_is_enabled() -> None:
    assert tracing(Config()) is None
    assert tracing(Config.model_validate({"tracing": {"endpoint": "http://127.0.0.1:4318/v1/traces"}})) is None


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({"endpoint": "127.0.0.1:4318"}, "http or https"),
        ({"endpoint": "http://user:secret@host/v1/traces"}, "without a user"),
        ({"sampling_ratio": 1.5}, "less than or equal to 1"),
        ({"headers": {"a b": "x"}}, "no name of a header"),
        ({"headers": {"a": "x\r\nb: y"}}, "ASCII"),
        ({"headers": {"a": " x"}}, "spaces"),
        ({"tls_key": "/key"}, "needs tls_certificate"),
        ({"queue": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused(section: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Config.model_validate({"tracing": section})


def test_the_values_of_headers_are_shown_nowhere() -> None:
    config = Config.model_validate({"tracing": {"enabled": True, "headers": {"authorization": "Bearer sesame"}}})
    assert "sesame" not in config.model_dump_json() + repr(config) + repr(tracing(config))
    found = tracing(config)
    assert found is not None
    assert found.headers == {"authorization": "Bearer sesame"}


def test_an_endpoint_without_a_path_has_the_usual_one() -> None:
    urls = ["", "http://h:4318", "http://h:4318/", "https://[::1]:4318", "https://h/otlp/v1/traces"]
    found = ["", "http://h:4318/v1/traces", "http://h:4318/v1/traces", "https://[::1]:4318/v1/traces", "https://h/otlp/v1/traces"]
    assert [endpoint(settings(endpoint=url).endpoint) for url in urls] == found


@pytest.mark.parametrize("option", ["tls_authorities", "tls_certificate"])
def test_a_file_of_tls_that_is_missing_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"tracing.{option}: /nowhere.pem"):
        exporter(settings(**{option: "/nowhere.pem"}), Connection())


def test_another_protocol_in_the_environment_is_told_and_not_followed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    exporter(settings(), Connection())
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, but traces are sent as http/protobuf" in caplog.text
    caplog.clear()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    exporter(settings(), Connection())
    assert caplog.text == ""


def test_the_loggers_of_the_sdk_are_overheard_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = logging.getLogger("opentelemetry.some.part")
    before = logging.getLogger("opentelemetry").handlers[:]
    with overheard() as words:
        words.at = logging.DEBUG
        theirs.warning("first")
        theirs.error("code %s", 503)
    assert logging.getLogger("opentelemetry").handlers == before
    assert capsys.readouterr().err == ""


IMPORTED = """
import sys
import bridge.cli.serve, bridge.daemon, bridge.daemon_settings, bridge.daemon_tracing
from bridge.config import Config
assert bridge.daemon_settings.tracing(Config()) is None

async def off():
    async with bridge.daemon_tracing.traced(None, None, None, None):
        pass

bridge.daemon.anyio.run(off)
print("\\n".join(sys.modules))
"""


def test_nothing_of_opentelemetry_is_imported_when_it_is_off() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    heavy = ("opentelemetry", "requests", "urllib3", "bridge.tracing.spans", "bridge.tracing.batches", "bridge.tracing.provider")
    assert [name for name in done.stdout.split() if name.startswith(heavy)] == []
