"""Joins the instruments and readings to one page."""

from __future__ import annotations

import prometheus_client
from anyio.to_thread import run_sync
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from bridge.core.services import Services
from bridge.metrics.instruments import Instruments
from bridge.metrics.readings import Readings, Sources


class Exposition:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, core: Services, sources: Sources) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a time a series, which would be half as many again
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.instruments = Instruments(self.registry, core.store, core.ports.handlers)
        self._sources = sources
        self._readings = Readings()
        self.registry.register(self._readings)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """See ``endpoint.Render``: values are read here, words are made of them in a thread."""
        self._readings.latest = self._sources.read()
        encode, kind = choose_encoder(accept)
        return await run_sync(encode, self.registry), kind
