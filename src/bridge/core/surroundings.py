"""What the two lifecycle services share: records, handles, settings, traces, and the daemon that owns their work."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from bridge.aio import Supervisor
from bridge.core.live import Live
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.core.trace import Traces


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``limiter`` bounds how many pods and containers are being made at once."""

    store: Store
    live: Live
    settings: CoreSettings
    traces: Traces
    supervisor: Supervisor
    limiter: anyio.CapacityLimiter
