"""A collector of OTLP over HTTP on the loopback, in a thread of its own."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent, and answers with ``code``."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.code = 200
        self.posts = 0
        self.headers: Mapping[str, str] = {}
        self.resource: dict[str, str] = {}
        self.spans: list[Span] = []

    def named(self) -> dict[str, Span]:
        return {span.name: span for span in self.spans}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested."""


class _Posted(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        collector = cast("Collector", self.server)
        message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        collector.headers = {"path": self.path, **{name.lower(): value for name, value in self.headers.items()}}
        if collector.code == 200:
            for each in message.resource_spans:
                collector.resource = {pair.key: pair.value.string_value for pair in each.resource.attributes}
                collector.spans += [span for scope in each.scope_spans for span in scope.spans]
        self.send_response(collector.code)
        self.send_header("content-length", "0")
        self.end_headers()
        collector.posts += 1

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def collecting(context: ssl.SSLContext | None = None) -> Iterator[Collector]:
    with Collector(context) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def said(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}
