"""Core put together from its ports: one function, so that the daemon and the tests build the same thing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import anyio

from bridge.aio import Supervisor
from bridge.core import spec
from bridge.core.checkpoints import CheckpointService
from bridge.core.confinement import Confiner
from bridge.core.container_create import ContainerCreator
from bridge.core.containers import ContainerService
from bridge.core.detach import Detacher
from bridge.core.events import EventHub
from bridge.core.execs import ExecService
from bridge.core.hostports import HostPorts
from bridge.core.injections import Injections, Sources
from bridge.core.leftovers import Leftovers
from bridge.core.live import Live
from bridge.core.metrics import MetricsService
from bridge.core.orphans import Orphans
from bridge.core.pod_checkpoints import PodCheckpointService
from bridge.core.preview import Previewer
from bridge.core.recovery import Recovery
from bridge.core.resources import ResourceService
from bridge.core.sandbox_run import SandboxRunner
from bridge.core.sandboxes import SandboxService
from bridge.core.settings import CoreSettings
from bridge.core.stats import StatsService
from bridge.core.store import Store
from bridge.core.streams import StreamService
from bridge.core.surroundings import Surroundings
from bridge.core.trace import Traces
from bridge.core.turns import Turns
from bridge.host.lookups import Lookups
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images
from bridge.ports.network import Network


@dataclass(frozen=True, slots=True)
class Ports:
    """The adapters that core works through."""

    handlers: Handlers
    network: Network
    images: Images


@dataclass(frozen=True, slots=True)
class Services:
    """Everything api needs of core."""

    store: Store
    live: Live
    sandboxes: SandboxService
    containers: ContainerService
    checkpoints: CheckpointService
    pod_checkpoints: PodCheckpointService
    execs: ExecService
    streams: StreamService
    resources: ResourceService
    stats: StatsService
    metrics: MetricsService
    recovery: Recovery
    ports: Ports
    lookups: Lookups
    previewer: Previewer
    daemon: Surroundings
    events: EventHub

    @property
    def traces(self) -> Traces:
        """Of what was done lately."""
        return self.daemon.traces

    def load(self) -> Mapping[str, object]:
        """What is being made and started now, who waits for a turn, and how many tasks the event loop holds."""
        creating, starting = self.daemon.creating, self.daemon.starting
        return {
            "at_once": creating.capacity,
            "creating": creating.working,
            "waiting_to_create": creating.waiting,
            "starting": starting.working,
            "waiting_to_start": starting.waiting,
            "tasks": len(anyio.get_running_tasks()),
            "unremoved": len(self.daemon.leftovers),
        }

    async def remove_remains(self) -> Sequence[str]:
        """Remove now what is left of failed creations and removals, and what no record owns. Returns in words what is gone."""
        gone = [*await self.daemon.leftovers.settle(), *await self.recovery.detacher.settle()]
        return [*gone, *await self.recovery.orphans.remove()]

    async def settle(self) -> None:
        """Wait until no flight is in the air (the caller sets the deadline)."""
        for flights in (self.sandboxes.runs, self.containers.creations, self.containers.starts):
            await flights.wait_idle()
        for flights in (self.sandboxes.stops, self.containers.removals, self.sandboxes.removals):
            await flights.wait_idle()

    def cancel(self) -> None:
        """Cancel every flight; what they had taken is undone under their own deadlines."""
        for flights in (self.sandboxes.runs, self.containers.creations, self.containers.starts):
            flights.cancel_all()
        for flights in (self.sandboxes.stops, self.containers.removals, self.sandboxes.removals):
            flights.cancel_all()


def _surroundings(store: Store, settings: CoreSettings, supervisor: Supervisor, detacher: Detacher) -> Surroundings:
    # From the first request on: nothing is done to a pod of an earlier server before recovery has looked at it.
    live = Live(recovering={ident: anyio.Event() for ident in store.sandboxes})
    creating, starting = Turns(settings.concurrent_creates), Turns(settings.concurrent_creates)
    return Surroundings(store, live, settings, Traces(), supervisor, creating, starting, Leftovers(store, detacher))


def _recovery(
    daemon: Surroundings,
    ports: Ports,
    detacher: Detacher,
    sandboxes: SandboxService,
    containers: ContainerService,
    facts: spec.HostFacts,
    spec_settings: spec.SpecSettings,
) -> Recovery:
    return Recovery(
        daemon=daemon,
        handlers=ports.handlers,
        orphans=Orphans(daemon.store, ports.handlers, ports.images, ports.network, detacher, daemon.settings, spec_settings),
        network=ports.network,
        detacher=detacher,
        sandboxes=sandboxes,
        containers=containers,
        facts=facts,
        spec_settings=spec_settings,
    )


def assemble(
    store: Store,
    ports: Ports,
    settings: CoreSettings,
    facts: spec.HostFacts,
    spec_settings: spec.SpecSettings,
    supervisor: Supervisor,
    sources: Sources | None = None,
) -> Services:
    """Build core over a loaded store. ``sources`` are the watched directories of CDI specs and hooks, None for none."""
    detacher = Detacher(store, ports.network, supervisor)
    daemon = _surroundings(store, settings, supervisor, detacher)
    live, leftovers, lookups, confiner = daemon.live, daemon.leftovers, Lookups(supervisor), Confiner(facts, spec_settings)
    injections = Injections(ports.handlers, sources or Sources.none())
    host_ports, net, images, handlers = HostPorts(store), ports.network, ports.images, ports.handlers
    creator = ContainerCreator(store, live, leftovers, handlers, images, lookups, settings, facts, spec_settings, injections, confiner)
    view = Previewer(ports.handlers, ports.images, settings, facts, spec_settings, injections, confiner, lookups)
    containers = ContainerService(daemon, ports.images, creator)
    runner = SandboxRunner(store, live, leftovers, net, images, detacher, settings, facts, spec_settings, host_ports, handlers, confiner)
    sandboxes = SandboxService(daemon, ports.handlers, containers, runner, detacher)
    recovery = _recovery(daemon, ports, detacher, sandboxes, containers, facts, spec_settings)
    limits = ResourceService(daemon, ports.handlers, containers, sandboxes, facts)
    stats = StatsService(daemon, containers, sandboxes, ports.images, spec_settings.cgroup_driver)
    metrics = MetricsService(stats, settings.metric_groups)
    streams = StreamService(store=store, live=live, handlers=ports.handlers, settings=settings)
    execs = ExecService(streams=streams, settings=settings)
    hub = EventHub(store)
    dumps = CheckpointService(daemon, ports.handlers, ports.images, containers)
    pods = PodCheckpointService(daemon, dumps, sandboxes, containers)
    _attend(supervisor, store, hub, lambda: leftovers.tend(recovery.finish))
    return Services(
        store, live, sandboxes, containers, dumps, pods, execs, streams, limits, stats, metrics, recovery, ports, lookups, view, daemon, hub
    )


def _attend(supervisor: Supervisor, store: Store, events: EventHub, tend: Callable[[], Awaitable[None]]) -> None:
    """Have the server do what goes on by itself."""
    supervisor.spawn("late writes", store.late.keep)
    supervisor.spawn("leftovers", tend)
    supervisor.spawn("first events", events.keep_first)
    supervisor.spawn("event times", events.times.keep)
