"""Traces over a whole core and real sockets: a caller with a traceparent on one side, a collector of OTLP over HTTP on the other."""

from __future__ import annotations

import logging
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bridge._proto.runtime import v1 as pb
from bridge.api import encoding
from bridge.api.server import GrpcServer
from bridge.client import CriError
from bridge.config import Config
from bridge.core.services import Services
from bridge.daemon_metrics import told
from bridge.daemon_settings import tracing
from bridge.daemon_tracing import traced
from bridge.errors import ConfigError
from bridge.tracing.settings import TracingSettings
from tests.component.conftest import pod
from tests.component.test_events import served, until
from tests.component.test_server_metrics import of, parts, scrape
from tests.otlp_collector import Collector, collecting, said

pytestmark = pytest.mark.root
SERVICE = "/runtime.v1.RuntimeService"
TRACE, UNKEPT, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "1bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def settings(port: int, **section: object) -> TracingSettings:
    made = {"enabled": True, "endpoint": f"http://127.0.0.1:{port}/v1/traces", "period": 0.02, **section}
    found = tracing(Config.model_validate({"tracing": made}))
    assert found is not None
    return found


@contextmanager
def overheard() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    logger = logging.getLogger("bridge.tracing")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def images() -> Any:
    """A store that pulls nothing."""
    return SimpleNamespace(trace_pulls=lambda tracer: None)


async def call(socket: Path, method: str, message: Any, reply: Any, **metadata: str) -> Any:
    channel = Channel(path=str(socket), codec=encoding.WireCodec())
    try:
        async with channel.request(f"{SERVICE}/{method}", Cardinality.UNARY_UNARY, type(message), reply, metadata=metadata) as stream:
            await stream.send_message(message, end=True)
            return await stream.recv_message()
    finally:
        channel.close()


async def test_the_spans_of_a_pod_are_those_of_its_caller_and_of_the_waterfall_and_are_counted_too(
    core: Services, collector: Collector, tmp_path: Path
) -> None:
    where = settings(
        collector.server_port, headers={"authorization": "Bearer sesame"}, resource_attributes={"k8s.node.name": "n1"}, service_name="cri"
    )
    config = Config.model_validate({"metrics": {"socket": str(tmp_path / "metrics.sock")}})
    socket = tmp_path / "cri.sock"
    async with served(core, socket) as (server, cri), traced(where, core, images(), server), told(config, core, *parts(), server):
        request = pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u1", namespace="ns")))
        metadata = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        ident = (await call(socket, "RunPodSandbox", request, pb.RunPodSandboxResponse, **metadata)).pod_sandbox_id
        with pytest.raises(CriError):
            await cri.runtime.container_status(pb.ContainerStatusRequest(container_id="absent"))
        assert {span.trace_id for span in core.traces.of(ident)} == {TRACE}
        drawn = [(span.name, span.depth) for span in core.traces.of(ident)]
        counted = await scrape(tmp_path / "metrics.sock")
        await call(socket, "Version", pb.VersionRequest(), pb.VersionResponse, traceparent=f"00-{UNKEPT}-{PARENT}-00")
        await cri.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=ident))
    assert (server.tracer, core.traces.tracer) == (None, None)
    found = collector.named()
    assert UNKEPT not in {span.trace_id.hex() for span in collector.spans}, "its caller keeps it not"
    run, whole = found["runtime.v1.RuntimeService/RunPodSandbox"], found["RunPodSandbox"]
    assert (run.trace_id.hex(), run.parent_span_id.hex(), run.trace_state) == (TRACE, PARENT, "vendor=1")
    assert run.kind == Span.SpanKind.SPAN_KIND_SERVER
    assert (whole.trace_id.hex(), whole.parent_span_id) == (TRACE, run.span_id)
    mine = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    assert {span.name for span in mine if span.parent_span_id == whole.span_id} == {name for name, depth in drawn if depth == 1} != set()
    assert len(mine) == 1 + len(drawn), "each step of the waterfall, and the RPC"
    assert said(run) | {"cri_bridge.request": ""} == {
        "rpc.system": "grpc",
        "rpc.service": "runtime.v1.RuntimeService",
        "rpc.method": "RunPodSandbox",
        "rpc.grpc.status_code": 0,
        "cri_bridge.request": "",
        "cri_bridge.pod_sandbox.id": ident,
        "cri_bridge.handler": core.ports.handlers.default,
        "k8s.pod.name": "web",
        "k8s.namespace.name": "ns",
        "k8s.pod.uid": "u1",
    }
    absent = found["runtime.v1.RuntimeService/ContainerStatus"]
    assert (said(absent)["rpc.grpc.status_code"], absent.parent_span_id) == (5, b"")
    removal, removed = found["runtime.v1.RuntimeService/RemovePodSandbox"], found["RemovePodSandbox"]
    assert (removed.trace_id, removed.parent_span_id) == (removal.trace_id, removal.span_id)
    assert removal.trace_id.hex() != TRACE
    assert said(removed)["k8s.pod.name"] == "web"
    assert of(counted, "cri_bridge_phase_duration_seconds_count", operation="RunPodSandbox", phase="cni add") == 1
    assert (collector.headers["path"], collector.headers["authorization"]) == ("/v1/traces", "Bearer sesame")
    assert (collector.resource["service.name"], collector.resource["k8s.node.name"]) == ("cri", "n1")


@pytest.mark.parametrize("code", [400, 302])
async def test_a_collector_that_is_dead_is_told_once_delays_nobody_and_gets_spans_when_it_is_back(
    core: Services, collector: Collector, tmp_path: Path, code: int
) -> None:
    collector.code = code
    with overheard() as lines:
        async with served(core, tmp_path / "cri.sock") as (server, cri), traced(settings(collector.server_port), core, images(), server):
            for round_ in (1, 2, 3):
                await cri.runtime.version(pb.VersionRequest())
                await until(lambda round_=round_: collector.posts >= round_)
            collector.code = 200
            await core.sandboxes.run(pod(), "")
            await until(lambda: "RunPodSandbox" in collector.named())
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1, lines
    assert "traces can't be sent and are dropped until that works again" in warnings[0]
    assert f"it answers {code}" in warnings[0]
    assert any("traces are sent again" in line for line in lines)


async def test_nobody_at_the_endpoint_does_not_hold_up_the_end(core: Services, tmp_path: Path) -> None:
    with Collector() as nobody:
        port = nobody.server_port
    where = settings(port, period=1000, flush_timeout=0.05)
    with overheard() as lines, anyio.fail_after(30):
        async with served(core, tmp_path / "cri.sock") as (server, cri), traced(where, core, images(), server):
            await cri.runtime.version(pb.VersionRequest())
    assert any("could not be sent in 0.05 s" in line for line in lines), lines


async def test_tls_by_the_authorities_that_are_given_and_by_no_others(core: Services, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x"]
        argv += ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-addext", "subjectAltName=IP:127.0.0.1"]
        await anyio.to_thread.run_sync(lambda argv=argv: subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ours.pem", tmp_path / "ours.key")
    with collecting(context) as collector:
        endpoint = f"https://127.0.0.1:{collector.server_port}/v1/traces"
        for name, arrives in (("theirs", False), ("ours", True)):
            where = settings(0, endpoint=endpoint, tls_authorities=str(tmp_path / f"{name}.pem"), timeout=1)
            with overheard() as lines:
                async with served(core, tmp_path / f"{name}.sock") as (server, cri), traced(where, core, images(), server):
                    await cri.runtime.version(pb.VersionRequest())
                    await until(lambda arrives=arrives, lines=lines: bool(collector.posts if arrives else "dropped" in "".join(lines)))
            assert bool(collector.spans) is arrives


async def test_off_nothing_follows_calls_and_pods(core: Services) -> None:
    async with GrpcServer([]) as server, traced(tracing(Config()), core, images(), server):
        assert (server.tracer, core.traces.tracer) == (None, None)


async def test_the_environment_can_switch_it_off(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with GrpcServer([]) as server, traced(settings(1), core, images(), server):
        assert (server.tracer, core.traces.tracer) == (None, None)


async def test_a_missing_package_is_named(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    async with GrpcServer([]) as server:
        with pytest.raises(ConfigError, match=r"install cri-bridge\[tracing\]"):
            async with traced(settings(1), core, images(), server):
                pytest.fail("it began")
