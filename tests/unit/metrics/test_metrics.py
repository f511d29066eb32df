"""What is counted, and how it is told over HTTP."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from bridge.config import Config, Metrics
from bridge.core import trace
from bridge.core.store import Store
from bridge.errors import NotFound
from bridge.images.progress import Board, Wanted
from bridge.metrics import endpoint
from bridge.metrics.endpoint import Endpoint
from bridge.metrics.instruments import Instruments
from bridge.metrics.readings import Readings
from bridge.ports.handlers import Handlers
from bridge.streaming.tls import Certificate


class OneStore:
    """One pod of runc with one container."""

    sandboxes: Mapping[str, object] = {"p1": SimpleNamespace(handler="runc")}

    def sandbox(self, ident: str) -> object:
        if ident not in self.sandboxes:
            raise NotFound(f"no pod {ident}")
        return self.sandboxes[ident]

    def container(self, ident: str) -> object:
        return SimpleNamespace(sandbox_id="p1")


HANDLERS = SimpleNamespace(default="crun", states=lambda: [SimpleNamespace(name="runc"), SimpleNamespace(name="crun")])


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def counted(registry: CollectorRegistry) -> Instruments:
    return Instruments(registry, cast("Store", OneStore()), cast("Handlers", HANDLERS))


def test_the_handler_is_taken_from_the_record_or_the_request(counted: Instruments) -> None:
    assert counted.handler_of(SimpleNamespace(pod_sandbox_id="p1")) == "runc"
    assert counted.handler_of(SimpleNamespace(container_id="c1")) == "runc"
    assert counted.handler_of(SimpleNamespace(pod_sandbox_id="gone")) == ""
    assert counted.handler_of(SimpleNamespace(runtime_handler="")) == "crun"
    assert counted.handler_of(SimpleNamespace(runtime_handler="whatever a pod names")) == ""
    assert counted.handler_of(SimpleNamespace(version="v1")) == ""


def test_rpcs_by_code_and_latency_of_unary_ones_alone(counted: Instruments, registry: CollectorRegistry) -> None:
    counted.called("RunPodSandbox", "runc", "OK", 0.02, streaming=False)
    counted.called("GetContainerEvents", "", "UNAVAILABLE", 900.0, streaming=True)
    counted.called("", "", "UNIMPLEMENTED", 0.001, streaming=False)
    value = registry.get_sample_value
    assert value("cri_bridge_rpcs_total", {"rpc": "RunPodSandbox", "handler": "runc", "code": "OK"}) == 1
    assert value("cri_bridge_rpcs_total", {"rpc": "unknown", "handler": "", "code": "UNIMPLEMENTED"}) == 1
    assert value("cri_bridge_rpc_duration_seconds_count", {"rpc": "RunPodSandbox", "handler": "runc"}) == 1
    assert value("cri_bridge_rpc_duration_seconds_count", {"rpc": "GetContainerEvents", "handler": ""}) is None


def test_phases_come_from_the_spans_without_names_of_containers(counted: Instruments, registry: CollectorRegistry) -> None:
    traces = trace.Traces(observer=counted.span)
    with trace.recording(traces, "p1", "RunPodSandbox"):
        with trace.span("cni add"):
            pass
        with trace.span("backend runc"):
            pass
    with pytest.raises(ValueError, match="no"), trace.recording(traces, "p1", "CreateContainer app"):
        raise ValueError("no")
    value = registry.get_sample_value
    for operation, phase in (("RunPodSandbox", "cni add"), ("RunPodSandbox", "backend"), ("CreateContainer", "total")):
        assert value("cri_bridge_phase_duration_seconds_count", {"operation": operation, "phase": phase}) == 1
    assert value("cri_bridge_phase_failures_total", {"operation": "CreateContainer", "phase": "total"}) == 1


def test_a_pod_with_a_full_trace_is_still_counted(counted: Instruments, registry: CollectorRegistry) -> None:
    traces = trace.Traces(observer=counted.span)
    for _ in range(300):
        with trace.recording(traces, "p1", "StartContainer app"):
            pass
    labels = {"operation": "StartContainer", "phase": "total"}
    assert registry.get_sample_value("cri_bridge_phase_duration_seconds_count", labels) == 300
    assert len(traces.of("p1")) == 256


async def test_pulls_by_registry_of_which_there_are_few(counted: Instruments, registry: CollectorRegistry) -> None:
    board = Board(lambda chain_id: chain_id == "base")
    board.watcher = counted

    async def chunks() -> Any:
        yield b"12345"

    with board.pull("docker.io/library/busybox:1") as shown:
        shown.announce([Wanted("base", "sha256:a", 3), Wanted("top", "sha256:b", 5)])
        assert [chunk async for chunk in board.counted("top", chunks())] == [b"12345"]
        board.landed("top")
    for number in range(40):
        with pytest.raises(ValueError, match="no"), board.pull(f"r{number}.example.com/x"):
            raise ValueError("no")
    value = registry.get_sample_value
    assert value("cri_bridge_image_pull_bytes_total", {"registry": "docker.io"}) == 5
    assert value("cri_bridge_image_pull_layers_total", {"registry": "docker.io"}) == 1
    assert value("cri_bridge_image_pulls_total", {"registry": "docker.io", "result": "success"}) == 1
    assert value("cri_bridge_image_pulls_total", {"registry": "other", "result": "failure"}) == 9


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Callable[[bytes], Any]]:
    async def render(accept: str) -> tuple[bytes, str]:
        return f"accept={accept}\n".encode(), "text/plain; version=0.0.4"

    async def ask(request: bytes) -> bytes:
        with anyio.fail_after(20):
            async with await anyio.connect_unix(path) as stream:
                await stream.send(request)
                answer = b""
                try:
                    while True:
                        answer += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return answer

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))
        listener.listen()
        async with anyio.create_task_group() as group:
            group.start_soon(Endpoint(listener, render).serve)
            yield ask
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n", b"200", b"accept=text/plain\n"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b"accept=\n"),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"404", b"there is only /metrics\n"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405", b"only GET is understood\n"),
        (b"nonsense\r\n\r\n", b"400", b"the request can't be read\n"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20000, b"431", b"the request can't be read\n"),
    ],
)
async def test_only_get_of_metrics_is_answered(tmp_path: Path, request_: bytes, status: bytes, body: bytes) -> None:
    async with served(tmp_path / "m.sock") as ask:
        answer = await ask(request_)
        assert answer.split(b" ", 2)[1] == status
        assert answer.endswith(b"\r\n\r\n" + body)


async def test_a_client_that_says_nothing_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SECONDS", 0.05)
    async with served(tmp_path / "m.sock") as ask:
        assert await ask(b"GET /met") == b""


def make_certificate(directory: Path) -> None:
    """c.pem and k.pem, for localhost, its own authority."""
    more = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    argv = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "k.pem", "-out", "c.pem", "-days", "2", *more]
    subprocess.run(argv, cwd=directory, check=True, capture_output=True)


async def ask_over_tls(port: int, authority: str, shown: Path | None = None) -> bytes:
    with anyio.fail_after(20):
        context = ssl.create_default_context(cadata=authority)
        context.check_hostname = False
        if shown is not None:
            context.load_cert_chain(shown / "c.pem", shown / "k.pem")
        async with await anyio.connect_tcp("127.0.0.1", port, ssl_context=context, tls_standard_compatible=False) as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def served_over_tls(certificate: Certificate) -> AsyncIterator[int]:
    async def render(accept: str) -> tuple[bytes, str]:
        return b"page\n", "text/plain"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with anyio.create_task_group() as group:
            group.start_soon(Endpoint(listener, render, certificate).serve)
            yield listener.getsockname()[1]
            group.cancel_scope.cancel()


async def test_tls_and_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    first = (tmp_path / "c.pem").read_text()
    async with served_over_tls(Certificate(tmp_path / "c.pem", tmp_path / "k.pem", section="metrics")) as port:
        assert (await ask_over_tls(port, first)).endswith(b"page\n")
        make_certificate(tmp_path)
        renewed = (tmp_path / "c.pem").read_text()
        assert (await ask_over_tls(port, renewed)).endswith(b"page\n")
        with pytest.raises(ssl.SSLError):
            await ask_over_tls(port, first)
        (tmp_path / "k.pem").write_text("half a ke")
        assert (await ask_over_tls(port, renewed)).endswith(b"page\n"), "the last good one serves on"


async def test_only_who_shows_a_certificate_of_the_authorities_may_read(tmp_path: Path) -> None:
    for name in ("server", "reader", "stranger"):
        (tmp_path / name).mkdir()
        make_certificate(tmp_path / name)
    server, authorities = tmp_path / "server", tmp_path / "reader" / "c.pem"
    async with served_over_tls(Certificate(server / "c.pem", server / "k.pem", authorities, section="metrics")) as port:
        trusted = (server / "c.pem").read_text()
        assert (await ask_over_tls(port, trusted, tmp_path / "reader")).endswith(b"page\n")
        for shown in (None, tmp_path / "stranger"):
            answer = b""
            with suppress(ssl.SSLError, anyio.BrokenResourceError):  # or the end of the stream
                answer = await ask_over_tls(port, trusted, shown)
            assert answer == b""
        assert (await ask_over_tls(port, trusted, tmp_path / "reader")).endswith(b"page\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"address": "localhost:1"}, "address: must be an IP address with a port"),
        ({"address": "127.0.0.1"}, "address: must be"),
        ({"address": "[127.0.0.1]:1"}, "address: must be"),
        ({"address": "127.0.0.1:65536"}, "address: must be"),
        ({"tls_key": "/k", "address": "127.0.0.1:1"}, "need tls_certificate"),
        ({"tls_certificate": "/c"}, "is for address"),
        ({"socket": "relative"}, "absolute"),
    ],
)
def test_what_can_not_be_configured(options: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Metrics.model_validate(options)


def test_addresses_that_can_be() -> None:
    assert Config.model_validate({"metrics": {"address": "[::1]:0"}}).metrics.address == "[::1]:0"


def test_nothing_is_imported_until_it_is_asked_for() -> None:
    assert importlib.util.find_spec("prometheus_client") is not None
    code = "import sys, bridge.daemon; print([m for m in sys.modules if 'prometheus' in m or m.startswith('bridge.metrics')])"
    found = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_readings_parse_as_prometheus_text(registry: CollectorRegistry) -> None:
    from prometheus_client.exposition import generate_latest

    readings = Readings()
    readings.latest = [("cri_bridge_pods", ("runc", "ready"), 3), ("cri_bridge_event_subscriber_overflows_total", (), 2)]
    registry.register(readings)
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert families["cri_bridge_pods"].samples[0].labels == {"handler": "runc", "state": "ready"}
    assert families["cri_bridge_event_subscriber_overflows"].type == "counter"


def test_what_clients_choose_adds_no_series_without_end(counted: Instruments, registry: CollectorRegistry) -> None:
    def series() -> int:
        return sum(len(family.samples) for family in registry.collect())

    def busy(first: int) -> None:
        for number in range(first, first + 500):
            chosen = f"chosen-{number}"
            for request in (SimpleNamespace(runtime_handler=chosen), SimpleNamespace(pod_sandbox_id=chosen)):
                counted.called("RunPodSandbox", counted.handler_of(request), "NOT_FOUND", 0.1, streaming=False)
            counted.called("", "", "UNIMPLEMENTED", 0.1, streaming=False)
            for operation in ("CreateContainer", "StartContainer", "RemoveContainer"):
                counted.span(operation, f"{operation} {chosen}", 0.1, True)
                counted.span(operation, f"{operation} cni add {chosen}", 0.1, True)
            counted.span("RunPodSandbox", f"backend {chosen}", 0.1, True)
            for failed in (False, True):
                counted.pulled(f"{chosen}.example.com/x:1", 1.0, 3, failed=failed)
            counted.received(f"{chosen}.example.com/x:1", 5)

    busy(0)
    before = series()
    busy(1000)
    assert series() == before < 2000
