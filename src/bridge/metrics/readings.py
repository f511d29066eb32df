"""What is read when somebody asks: sizes of queues, states, health. Read in the event loop, told from a worker thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from bridge.core.services import Services

Reading = tuple[str, tuple[str, ...], float]
"""Name of a family, its labels' values, the value."""

FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "cri_bridge_build_info": ("Version of the server; always 1.", ("version", "python")),
    "cri_bridge_pods": ("Pods on record.", ("handler", "state")),
    "cri_bridge_containers": ("Containers on record.", ("state",)),
    "cri_bridge_handler_enabled": ("1 for a handler that can be used, 0 for one that is disabled.", ("handler",)),
    "cri_bridge_monitor_up": ("1 while the monitor process answers.", ()),
    "cri_bridge_monitor_losses_total": ("Times that the monitor died, hung and was killed, or was disconnected.", ("kind",)),
    "cri_bridge_rpcs_in_flight": ("RPCs that run now.", ()),
    "cri_bridge_event_loop_tasks": ("Tasks that the event loop holds.", ()),
    "cri_bridge_turns": ("Pods and containers being made or started (working), and those that wait for it.", ("work", "state")),
    "cri_bridge_event_subscribers": ("Streams of container events.", ()),
    "cri_bridge_event_queue_length": ("Container events that wait for the slowest of them.", ()),
    "cri_bridge_event_subscriber_overflows_total": ("Streams of container events ended as they fell behind.", ()),
    "cri_bridge_leftovers": ("Pods and containers that are to go and whose remains would not.", ()),
    "cri_bridge_orphans_removed_total": ("What no record owned and was removed.", ()),
    "cri_bridge_records_unwritten": ("Records that are behind what happened, as the disk refuses them.", ()),
    "cri_bridge_stream_sessions": ("Sessions of exec, attach and port-forward.", ()),
    "cri_bridge_stream_connections_waiting": ("Streaming connections whose request is not whole.", ()),
    "cri_bridge_image_pulls_running": ("Pulls and imports that run.", ()),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Whom to ask. ``others`` gives what the core does not know; ``version`` and ``python`` are for build_info."""

    core: Services
    others: Callable[[], Iterable[Reading]]
    version: str
    python: str

    def read(self) -> Sequence[Reading]:
        """All of it, now. In the event loop's thread."""
        core, load = self.core, self.core.load()
        found: list[Reading] = [("cri_bridge_build_info", (self.version, self.python), 1)]
        pods = Counter((each.handler, str(each.state)) for each in core.store.sandboxes.values())
        found += [("cri_bridge_pods", labels, count) for labels, count in pods.items()]
        containers = Counter(str(each.state) for each in core.store.containers.values())
        found += [("cri_bridge_containers", (state,), count) for state, count in containers.items()]
        found += [("cri_bridge_handler_enabled", (each.name,), float(each.features is not None)) for each in core.ports.handlers.states()]
        for work, working, waiting in (("create", "creating", "waiting_to_create"), ("start", "starting", "waiting_to_start")):
            found.append(("cri_bridge_turns", (work, "working"), _number(load[working])))
            found.append(("cri_bridge_turns", (work, "waiting"), _number(load[waiting])))
        plain = {
            "cri_bridge_event_loop_tasks": _number(load["tasks"]),
            "cri_bridge_leftovers": _number(load["unremoved"]),
            "cri_bridge_records_unwritten": len(core.store.late),
            "cri_bridge_event_subscribers": core.events.subscribers,
            "cri_bridge_event_queue_length": core.events.behind,
            "cri_bridge_event_subscriber_overflows_total": core.events.overflows,
            "cri_bridge_orphans_removed_total": core.recovery.orphans.tally.removed,
        }
        return [*found, *((name, (), float(value)) for name, value in plain.items()), *self.others()]


class Readings(Collector):
    """The latest of them, as prometheus-client wants it."""

    def __init__(self) -> None:
        self.latest: Sequence[Reading] = ()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Each family, also one without a value."""
        by_name: dict[str, list[Reading]] = {}
        for reading in self.latest:
            by_name.setdefault(reading[0], []).append(reading)
        for name, (words, labels) in FAMILIES.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, words, labels=labels)
            for _, values, value in by_name.get(name, ()):
                family.add_metric(values, value)
            yield family


def _number(value: object) -> float:
    assert isinstance(value, int)
    return float(value)
