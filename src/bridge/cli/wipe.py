"""``cri-bridge wipe``: remove every pod, through the running server or, when none runs, with everything the server keeps.

Without a server the command is one for a moment, on a socket of its own: pods are ended and taken off the network by the same code, and
what no record owns goes as at each start. Nothing but this configuration's own directories is touched.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli import records_file
from bridge.cli.connection import server
from bridge.cli.output import as_json, table
from bridge.client import CriClient, CriError
from bridge.config import Config
from bridge.config_files import load
from bridge.core import state_file
from bridge.errors import BridgeError, HostError, Unavailable
from bridge.host import database_copy, files
from bridge.monitor.client import MonitorClient

_PARALLEL = 8
_PATIENCE = 600.0
_STATE = ("cache",)
_RUN = ("sandboxes", "runtimes", "tty", "pause")
_NAMED_HINT = "stop the kubelet first, or it makes them again"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that is, or was, to be removed; ``error`` says why it could not be."""

    id: str
    namespace: str
    name: str
    state: str
    containers: int
    error: str = ""


@dataclass(slots=True)
class Outcome:
    """``removed`` is False when this only told what would be. ``server`` is whether one was running."""

    pods: Sequence[Pod]
    server: bool
    removed: bool = False
    images: int = 0
    state: bool = False

    @property
    def failed(self) -> int:
        """How many pods are still there against our will."""
        return sum(bool(pod.error) for pod in self.pods)


def run(arguments: argparse.Namespace) -> int:
    """Say what would be removed, or with ``--force`` remove it; exit code 1 when something could not be."""
    config = load(arguments.config)
    outcome = _wiped(config, force=arguments.force, images=arguments.images)
    if arguments.output == "json":
        as_json({**asdict(outcome), "failed": outcome.failed})
    else:
        _print(outcome, config, images=arguments.images)
    return 1 if outcome.failed else 0


def _wiped(config: Config, *, force: bool, images: bool) -> Outcome:
    try:
        return anyio.run(_through, config.server.socket, force, images)
    except Unavailable:
        pass
    if not force:
        return Outcome(_recorded(config), server=False)
    log.setup("warning")
    outcome: Outcome = anyio.run(_alone, config, images)
    return outcome


async def _through(socket: Path, force: bool, images: bool) -> Outcome:
    """Through the server that listens on ``socket``. Raises Unavailable when there is none."""
    async with server(socket, timeout=_PATIENCE) as client:
        pods = await _listed(client)
        if not force:
            return Outcome(pods, server=True)
        pods = await _removed(client, pods)
        await client.admin.remove_orphans(admin.RemoveOrphansRequest())
        pruned = (await client.admin.prune_images(admin.PruneImagesRequest(all=True))).images if images else []
        return Outcome(pods, server=True, removed=True, images=len(pruned))


async def _alone(config: Config, images: bool) -> Outcome:
    from bridge import daemon  # the whole server: nobody else needs it

    own = config.server.run_dir / "wipe.sock"
    private = config.model_copy(update={"server": config.server.model_copy(update={"socket": own})})
    async with daemon.running(private):
        outcome = await _through(own, True, images)
    outcome.server = False
    if not outcome.failed:
        await _end_monitor(config.monitor.socket)
        await run_sync(_forget, config.server.state_dir, config.server.run_dir)
        await _delete(config, images)
        outcome.state = True
    return outcome


async def _listed(client: CriClient) -> list[Pod]:
    containers = [one.pod_sandbox_id for one in (await client.runtime.list_containers(pb.ListContainersRequest())).containers]
    found = []
    for pod in (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items:
        meta = pod.metadata or pb.PodSandboxMetadata()
        state = "ready" if pod.state is pb.PodSandboxState.SANDBOX_READY else "notready"
        found.append(Pod(pod.id, meta.namespace, meta.name, state, containers.count(pod.id)))
    return found


def _recorded(config: Config) -> list[Pod]:
    known = records_file.read(config.server.state_dir, config.server.run_dir)
    owners = [container.sandbox_id for container in known.containers.values()]
    return [
        Pod(pod.id, pod.config.metadata.namespace, pod.config.metadata.name, str(pod.state), owners.count(pod.id))
        for pod in known.sandboxes.values()
    ]


async def _removed(client: CriClient, pods: Sequence[Pod]) -> list[Pod]:
    limiter, done = anyio.CapacityLimiter(_PARALLEL), []

    async def remove(pod: Pod) -> None:
        async with limiter:
            try:
                await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
                await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
                done.append(pod)
            except CriError as exc:
                done.append(Pod(pod.id, pod.namespace, pod.name, pod.state, pod.containers, exc.message))

    async with anyio.create_task_group() as group:
        for pod in pods:
            group.start_soon(remove, pod, name=f"remove pod {pod.id}")
    return done


async def _end_monitor(socket: Path) -> None:
    with suppress(BridgeError):  # it is away, or closes the connection as it goes
        async with MonitorClient.connect(socket, timeout=0.5) as monitor:
            await monitor.shutdown(force=True)
            with anyio.move_on_after(10):
                await monitor.closed.wait()


def _forget(state_dir: Path, run_dir: Path) -> None:
    """The records and their copy. Blocks."""
    try:
        for path in (state_dir / state_file.NAME, run_dir / state_file.COPY, *state_file.set_aside(state_dir)):
            database_copy.remove(path)
    except OSError as exc:
        raise HostError(f"can't remove {exc.filename}: {exc.strerror}", errno=exc.errno) from exc


async def _delete(config: Config, images: bool) -> None:
    """Directories by name: what else lies there is not ours. Mounts are never crossed."""
    for path in (config.server.state_dir / name for name in _STATE):
        await files.remove_tree(path)
    for path in (config.server.run_dir / name for name in _RUN):
        await files.remove_tree(path)
    if images:
        await files.remove_tree(config.images.root)


def _print(outcome: Outcome, config: Config, *, images: bool) -> None:
    if outcome.pods:
        rows = [(pod.id[:13], f"{pod.namespace}/{pod.name}", pod.state, str(pod.containers), pod.error) for pod in outcome.pods]
        table(("POD", "NAME", "STATE", "CONTAINERS", "COULD NOT BE REMOVED" if outcome.failed else ""), rows)
        print()
    count = f"{len(outcome.pods)} pod{'' if len(outcome.pods) == 1 else 's'}"
    if not outcome.removed:
        whole = "" if outcome.server else f", and all state in {config.server.state_dir} and {config.server.run_dir}"
        unused = " and the images" if images else ""
        away = "" if outcome.server else f"no server answers on {config.server.socket}: with --force this command does the work itself\n"
        print(f"{away}{count}{unused} would be removed{whole}; say --force to do it ({_NAMED_HINT})")
        return
    print(f"{len(outcome.pods) - outcome.failed} of {count} removed" + (f", {outcome.images} images" if images else ""))
    if outcome.state:
        print("the records and the monitor are gone as well")
    elif not outcome.server:
        print("the records stay, as pods do")
