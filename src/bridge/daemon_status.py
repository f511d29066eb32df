"""What the running server says of itself: to Status, to plugins."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import anyio

from bridge import __version__, log
from bridge.config import Config
from bridge.core.entities import Container
from bridge.core.services import Ports
from bridge.core.store import Change, Store
from bridge.errors import LimitExceeded
from bridge.host.lookups import Statistics
from bridge.images.progress import PullProgress
from bridge.monitor.link import MonitorLink
from bridge.plugins import Plugins
from bridge.streaming.server import StreamServer

_logger = log.get("daemon")


@dataclass(slots=True)
class InForce:
    """The configuration that the server works by; SIGHUP puts another in its place."""

    config: Config


@dataclass(frozen=True, slots=True)
class NodeDetails:
    """The node as Status shows it."""

    in_force: InForce
    ports: Ports
    link: MonitorLink
    lookups: Callable[[], Statistics]
    pulls: Callable[[], Sequence[PullProgress]]
    streams: StreamServer
    load: Callable[[], Mapping[str, object]]
    selinux: Mapping[str, object] = field(default_factory=dict)

    def health(self) -> tuple[str, str]:
        """Reason and message of RuntimeReady being false; empty when all is well."""
        if self.link.fault:
            return "MonitorNotReady", f"the monitor is away: {self.link.fault}"
        if not any(state.features for state in self.ports.handlers.states()):
            reasons = "; ".join(f"{state.name}: {state.disabled_reason}" for state in self.ports.handlers.states())
            return "NoRuntimeHandler", f"no runtime handler is usable: {reasons or 'none is configured'}"
        return "", ""

    def info(self) -> Mapping[str, str]:
        """Verbose Status: configuration, handlers (what was found, why one is disabled), network, SELinux, load, pulls, streams."""
        handlers = {
            state.name: {
                "plugin": state.plugin,
                "enabled": state.features is not None,
                "reason": state.disabled_reason,
                "next_try_seconds": None if state.next_try is None else max(0, round(state.next_try - anyio.current_time())),
                "version": state.features.version if state.features else "",
                "path": state.features.path if state.features else "",
                "abilities": {str(a): f"{f.support}: {f.detail}" for a, f in state.features.abilities.items()} if state.features else {},
            }
            for state in self.ports.handlers.states()
        }
        network = self.ports.network.status()
        return {
            "version": json.dumps(__version__),
            "config": self.in_force.config.model_dump_json(),
            "handlers": json.dumps({"default": self.ports.handlers.default, "handlers": handlers}),
            "network": json.dumps({"ready": network.ready, "reason": network.reason, "message": network.message}),
            "selinux": json.dumps(self.selinux),
            "streaming": json.dumps({"url": self.streams.base_url, "sessions": self.streams.sessions, "waiting": self.streams.waiting}),
            "lookups": json.dumps(asdict(self.lookups())),
            "load": json.dumps(self.load()),
            "pulls": json.dumps([asdict(pull) for pull in self.pulls()]),
        }


async def tell_plugins(store: Store, plugins: Plugins) -> None:
    """Pass each change of a pod or container on to the plugins' bridge_pod_event hooks, for ever."""
    while True:
        try:
            async with store.changes.subscribe() as changes:
                async for change in changes:
                    plugins.pod_event(_event(change))
        except LimitExceeded:
            _logger.warning("plugins were too slow for the pod events and missed some")


def _event(change: Change) -> Mapping[str, object]:
    entity = change.after or change.before
    if isinstance(entity, Container):
        return {"kind": change.event, "pod": entity.sandbox_id, "container": entity.id, "at_ns": time.time_ns()}
    return {"kind": change.event, "pod": entity.id if entity else "", "container": "", "at_ns": time.time_ns()}
