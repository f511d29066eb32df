"""The SDK, set up from the settings, and what its loggers say.

The global tracer provider stays as it is: there is one a process, and it can't be taken back.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import environment_variables as names
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.util.types import AnyValue

from bridge import __version__, log
from bridge.errors import ConfigError
from bridge.tracing.batches import Pace
from bridge.tracing.settings import TracingSettings

SERVICE = "cri-bridge"
_logger = log.get("tracing")
_WORDS = 300
_PROTOCOL = "http/protobuf"


class Words(logging.Handler):
    """Passes on what the SDK's loggers say, at the level ``at``: WARNING while it is set up, then DEBUG.

    Else it goes to stderr as it is, for each batch and for each wrong header of a caller.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.at = logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        _logger.log(self.at, "%s", record.getMessage()[:_WORDS])


class Connection(requests.Session):
    """Remembers why a request failed: the exporter tells that to nobody once its time is over."""

    def __init__(self) -> None:
        super().__init__()
        self.why = ""

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """See requests.Session."""
        options.setdefault("verify", self.verify)  # else REQUESTS_CA_BUNDLE takes its place
        try:
            answer = super().request(*args, **options)
            if 300 <= answer.status_code < 400:  # the exporter follows none, and takes it for success
                raise requests.RequestException(f"it answers {answer.status_code} {answer.reason}")
        except Exception as exc:
            self.why = f"{type(exc).__name__}: {exc}"[:_WORDS]
            raise
        self.why = "" if answer.ok else f"it answers {answer.status_code} {answer.reason}"[:_WORDS]
        return answer


@contextmanager
def overheard() -> Iterator[Words]:
    """The SDK's loggers speak to the one that is given, and to nobody else, until the block ends."""
    theirs, words = logging.getLogger("opentelemetry"), Words()
    before = theirs.propagate, theirs.level
    theirs.addHandler(words)
    theirs.propagate = False
    theirs.setLevel(logging.WARNING)
    try:
        yield words
    finally:
        theirs.removeHandler(words)
        theirs.propagate, level = before
        theirs.setLevel(level)


def exporter(settings: TracingSettings, connection: Connection) -> OTLPSpanExporter:
    """Who sends, by ``connection``. Reads files. Raises ConfigError."""
    for option, path in (("tls_authorities", settings.authorities), ("tls_certificate", settings.certificate)):
        if path is None:
            continue
        try:
            context = ssl.create_default_context()
            if option == "tls_authorities":
                context.load_verify_locations(path)
            else:
                context.load_cert_chain(path, settings.key)
        except OSError as exc:  # of ssl too
            raise ConfigError(f"tracing.{option}: {path}: {exc}") from exc
    for name in (names.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, names.OTEL_EXPORTER_OTLP_PROTOCOL):
        if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
            _logger.warning("%s is %s, but traces are sent as %s", name, log.quote(os.environ[name]), _PROTOCOL)
    return OTLPSpanExporter(
        endpoint=endpoint(settings.endpoint) or None,
        certificate_file=str(settings.authorities) if settings.authorities else None,
        client_certificate_file=str(settings.certificate) if settings.certificate else None,
        client_key_file=str(settings.key) if settings.key else None,
        headers=dict(settings.headers) or None,
        timeout=settings.timeout,
        session=connection,
    )


def endpoint(url: str) -> str:
    """``url`` with the path that OTLP has for traces where it has none: the exporter would post to the root."""
    return f"{url.rstrip('/')}/v1/traces" if url and not urlsplit(url).path.strip("/") else url


def provider(settings: TracingSettings) -> TracerProvider:
    """Who makes spans; nobody gets them yet."""
    own: dict[str, AnyValue] = {
        "service.name": SERVICE,
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    named = {"service.name": settings.service_name} if settings.service_name else {}
    resource = Resource.create(own).merge(OTELResourceDetector().detect()).merge(Resource({**settings.resource, **named}))
    sampler: Sampler | None = None if settings.ratio is None else ParentBased(TraceIdRatioBased(settings.ratio))
    return TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)


def pace(settings: TracingSettings) -> Pace:
    """How much may wait, and how often it is sent."""
    usual = Pace()
    queue = settings.queue or int(_number(names.OTEL_BSP_MAX_QUEUE_SIZE, usual.queue))
    batch = int(_number(names.OTEL_BSP_MAX_EXPORT_BATCH_SIZE, usual.batch))
    period = settings.period or _number(names.OTEL_BSP_SCHEDULE_DELAY, usual.period * 1000) / 1000  # milliseconds there
    return Pace(queue, min(batch, queue), period)


def _number(name: str, usual: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return usual
    if not text.isdecimal() or len(text) > 7 or not 0 < int(text) <= 1_000_000:
        _logger.warning("%s is %s, which is no number that can be used: it is taken as %g", name, log.quote(text), usual)
        return usual
    return float(text)
