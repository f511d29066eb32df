"""What the two lifecycle services share: records, handles, settings, traces, and the daemon that owns their work."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.aio import Supervisor
from bridge.core.leftovers import Leftovers
from bridge.core.live import Live
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.core.trace import Traces
from bridge.core.turns import Turns


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``creating`` bounds how many pods and containers are being made at once, ``starting`` how many containers are being started."""

    store: Store
    live: Live
    settings: CoreSettings
    traces: Traces
    supervisor: Supervisor
    creating: Turns
    starting: Turns
    leftovers: Leftovers
