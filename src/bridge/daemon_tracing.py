"""Traces for OpenTelemetry, if the configuration asks for them: nothing of it is imported otherwise."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.to_thread import run_sync

from bridge import __version__, log
from bridge.api.server import GrpcServer
from bridge.core.services import Services
from bridge.errors import ConfigError
from bridge.images.store import ImageStore
from bridge.tracing.settings import TracingSettings

_logger = log.get("tracing")
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


@asynccontextmanager
async def traced(settings: TracingSettings | None, core: Services, images: ImageStore, server: GrpcServer) -> AsyncIterator[None]:
    """Trace RPCs and their steps while the block runs; what waits then is sent within a deadline. Raises ConfigError."""
    if settings is None:
        yield
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        _logger.warning("tracing.enabled is set, but so is OTEL_SDK_DISABLED: there are no traces")
        yield
        return
    if not all(map(_installed, _PACKAGES)):
        raise ConfigError("tracing.enabled: needs the SDK of OpenTelemetry and its exporter: install cri-bridge[tracing]")
    from bridge.tracing.batches import Batches
    from bridge.tracing.provider import Connection, exporter, overheard, pace, provider
    from bridge.tracing.spans import Spans

    with overheard() as words:
        connection = Connection()
        sender = await run_sync(exporter, settings, connection)
        made = await run_sync(provider, settings)
        batches = Batches(sender, pace(settings), lambda: connection.why)
        try:
            words.at = logging.DEBUG
            made.add_span_processor(batches)
            spans = Spans(made.get_tracer("cri-bridge", __version__), core.store)
            server.tracer, core.traces.tracer = spans, spans
            images.trace_pulls(spans)
            _logger.info("sending traces to %s", settings.endpoint or "where the environment says")
            yield
        finally:
            server.tracer = core.traces.tracer = None
            images.trace_pulls(None)
            with anyio.CancelScope(shield=True):  # bounded by close itself
                if not await run_sync(batches.close, settings.flush):
                    _logger.warning("the last traces could not be sent in %g s", settings.flush)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False
