"""What tracing is told. What is None or empty here is left to the environment variables of OpenTelemetry, then to their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """``endpoint`` is the whole URL; ``ratio`` of the traces that begin here; ``queue`` in spans; times in seconds."""

    endpoint: str = ""
    ratio: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    service_name: str = ""
    resource: Mapping[str, str] = field(default_factory=dict)
    queue: int | None = None
    period: float | None = None
    timeout: float | None = None
    flush: float = 3.0
