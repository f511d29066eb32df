"""``cri-bridge doctor --leaks``: what lies on this host that no record owns, and on demand its removal by the server.

The host is looked at first and the records are read afterwards, so that nothing that is being made is blamed; then the host is looked
at again, and what has gone meanwhile was being removed. The server may run or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli import leak_traces, lease_places, records_file
from bridge.cli.connection import server
from bridge.cli.leak_traces import Places, Trace
from bridge.cli.output import as_json, table
from bridge.cli.records_file import Recorded
from bridge.config import Config
from bridge.config_files import load
from bridge.core import remains
from bridge.errors import BridgeError, HostError, MonitorGone
from bridge.host import trial_cgroups
from bridge.monitor.client import MonitorClient

_PATIENCE = 120.0
_SHORT = 32


@dataclass(frozen=True, slots=True)
class Leak:
    """Something without an owner. ``certain`` is False when it may as well be another server's: that is never removed."""

    kind: str
    path: str
    id: str
    about: str
    why: str
    certain: bool


def run(arguments: argparse.Namespace) -> int:
    """Print the leaks, after their removal if that is wanted; exit code 1 when there are some that are ours for certain."""
    config = load(arguments.config)
    found = audit(config)
    if arguments.remove and any(leak.certain for leak in found):
        anyio.run(_remove, config)
        found = audit(config)
    certain = sum(leak.certain for leak in found)
    shown = [leak for leak in found if leak.certain or arguments.all]
    if arguments.output == "json":
        as_json({"leaks": certain, "found": [asdict(leak) for leak in shown]})
        return 1 if certain else 0
    if shown:
        rows = [(leak.kind, leak.path, leak.id[:13], leak.about, leak.why) for leak in shown]
        table(("KIND", "WHERE", "ID", "SEEMS TO BELONG TO", "WHY"), rows)
        print()
    others = len(found) - certain
    note = f"; {others} may be another server's (--all lists them)" if others and not arguments.all else ""
    print(f"{certain} without an owner{note}")
    if certain and not arguments.remove:
        print("(cri-bridge doctor --leaks --remove has the server remove them; it does so at each start, too)")
    return 1 if certain else 0


def audit(config: Config) -> Sequence[Leak]:
    """What is on this host and in no record of the server with this configuration. Raises HostError, CorruptData."""
    before = _look(config)
    recorded = records_file.read(config.server.state_dir, config.server.run_dir)
    leaks = judge(before, recorded)
    if leaks:
        still = {(trace.kind, trace.path) for trace in _look(config)}
        leaks = [leak for leak in leaks if (leak.kind, leak.path) in still]
    debts = [_debt(ident, recorded) for ident in recorded.detachments]
    return [*leaks, *debts, *(_unremoved(ident, why, recorded) for ident, why in recorded.unremoved.items()), *_trials()]


def _trials() -> list[Leak]:
    """Not certain, as their names don't tell whose they were; servers remove them all the same, as nobody can be using them."""
    why = "its server was killed while it ran; the next start of a server removes it"
    return [Leak("cgroup", f"/{name}", "", "trial of a handler", why, certain=False) for name in trial_cgroups.abandoned()]


def judge(traces: Sequence[Trace], recorded: Recorded) -> list[Leak]:
    """Those of ``traces`` that no record owns. What lies among others' things is ours when its id is also in a place of ours."""
    owners = recorded.owners
    short = {ident[:_SHORT] for ident in owners}
    aside = {ident: why for ident, _, why in recorded.set_aside}
    evidence = {trace.ident for trace in traces if trace.ours} | set(aside)
    leaks = []
    for trace in traces:
        if trace.ident in owners or trace.ident[:_SHORT] in short:
            continue
        certain = trace.ident in evidence
        if not certain and trace.kind == "address":
            continue  # of another runtime on the same network
        why = f"its record was set aside: {aside[trace.ident]}" if trace.ident in aside else "there is no record of it"
        leaks.append(Leak(trace.kind, trace.path, trace.ident, trace.about, why, certain))
    return leaks


def _debt(ident: str, recorded: Recorded) -> Leak:
    network = str(recorded.detachments[ident].get("network", ""))
    why = "its CNI DEL failed; a running server tries it again and again"
    return Leak("network attachment", network, ident, recorded.about(ident) or "a pod that was removed", why, certain=True)


def _unremoved(ident: str, why: str, recorded: Recorded) -> Leak:
    kind = "container" if ident in recorded.containers else "pod"
    why = f"its removal failed: {why}; a running server tries it again and again"
    return Leak(kind, "what is left of it", ident, recorded.about(ident), why, certain=True)


def _look(config: Config) -> Sequence[Trace]:
    try:
        found = leak_traces.find(Places.of(config, lease_places.find(config)))
    except PermissionError as exc:
        raise HostError(f"can't look into {exc.filename}: run this as root", errno=exc.errno) from exc
    except OSError as exc:
        raise HostError(f"can't look into {exc.filename}: {exc.strerror}", errno=exc.errno) from exc
    return [*found, *anyio.run(_tasks, config.monitor.socket)]


async def _tasks(socket: Path) -> list[Trace]:
    with suppress(MonitorGone):
        async with MonitorClient.connect(socket, timeout=0.2) as monitor:
            tasks = [task for task in await monitor.tasks() if remains.is_id(task.id)]
            return [Trace("monitor task", f"task {task.id[:13]}, pid {task.pid}", task.id, task.kind) for task in tasks]
    return []


async def _remove(config: Config) -> None:
    try:
        async with server(config.server.socket, timeout=_PATIENCE) as client:
            await client.admin.remove_orphans(admin.RemoveOrphansRequest())
    except BridgeError as exc:
        raise HostError(f"only the server removes what nobody owns, as it does at each start: {exc}") from exc
