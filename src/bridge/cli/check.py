"""``cri-bridge check``: whether what the server keeps is sound: records, their copy, images, and whether anything is without an owner."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import anyio

from bridge import __version__
from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli import image, image_index, leaks, records_file
from bridge.cli.connection import server
from bridge.cli.doctor import show
from bridge.cli.findings import Finding, State
from bridge.cli.output import as_json
from bridge.cli.records_file import Recorded
from bridge.client import CriClient
from bridge.config import Config
from bridge.config_files import load
from bridge.core import state_file
from bridge.core.store import MIGRATIONS
from bridge.errors import BridgeError, CorruptData, MonitorGone, Unavailable
from bridge.monitor.client import MonitorClient
from bridge.monitor.program import program

_PATIENCE = 600.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SHOWN = 5


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; exit code 1 when something is broken."""
    findings = examine(load(arguments.config))
    broken = sum(found.state is State.MISSING for found in findings)
    if arguments.output == "json":
        as_json({"broken": broken, "findings": [asdict(found) for found in findings]})
    else:
        show(findings, everything=True, worst="broken")
    return 1 if broken else 0


def examine(config: Config) -> Sequence[Finding]:
    """All findings, of the server with this configuration, whether it runs or not."""
    answered = anyio.run(_asked, config)
    found = [*(answered if answered is not None else [_away(config), image_index.check(config.images.root)])]
    found += anyio.run(_monitor, config)
    found += _records(config)
    found.append(_leaks(config))
    gravity = [State.MISSING, State.ADVICE, State.OK]
    return sorted(found, key=lambda one: gravity.index(one.state))


def _away(config: Config) -> Finding:
    return Finding("server", "server", State.ADVICE, f"no server answers on {config.server.socket}", "systemctl start cri-bridge")


async def _asked(config: Config) -> list[Finding] | None:
    """What a running server knows best; None when none answers."""
    try:
        async with server(config.server.socket, timeout=_PATIENCE) as client:
            version = await client.runtime.version(pb.VersionRequest())
            return [_version(version.runtime_version), await _images(client)]
    except Unavailable:
        return None


def _version(running: str) -> Finding:
    if running == __version__:
        return Finding("server", "version", State.OK, running)
    return Finding("server", "version", State.ADVICE, f"{running} runs, {__version__} is installed", "systemctl restart cri-bridge")


async def _images(client: CriClient) -> Finding:
    report = await client.admin.check_images(admin.CheckImagesRequest())
    lines = image.report_lines(report, repair=False)
    if report.damaged or report.index_faults or report.damaged_documents:
        return Finding("images", "store", State.MISSING, _few(lines), "cri-bridge image check --full --repair")
    return Finding("images", "store", State.OK, lines[-1])


async def _monitor(config: Config) -> list[Finding]:
    try:
        async with MonitorClient.connect(config.monitor.socket, timeout=1.0) as monitor:
            count = len(await monitor.tasks())
            if monitor.program == program():
                return [Finding("monitor", "monitor", State.OK, f"process {monitor.pid}, {count} tasks")]
            detail = f"process {monitor.pid} is of another release; the server renews it when no exec and no attached client is in the way"
            return [Finding("monitor", "monitor", State.ADVICE, detail)]
    except MonitorGone:
        return [Finding("monitor", "monitor", State.ADVICE, f"none answers on {config.monitor.socket}; a server starts one")]


def _records(config: Config) -> Iterator[Finding]:
    state_dir, run_dir = config.server.state_dir, config.server.run_dir
    for path in state_file.set_aside(state_dir):
        yield Finding("records", "damaged file", State.ADVICE, f"{path} was damaged and set aside", f"look at it, then rm {path}*")
    path, copy = state_dir / state_file.NAME, run_dir / state_file.COPY
    if not path.exists():
        detail = f"{path} is not there" + (f"; the next start rebuilds it from {copy}" if copy.exists() else "")
        yield Finding("records", "state.db", State.MISSING if copy.exists() else State.ADVICE, detail)
        return
    try:
        recorded = records_file.read_file(path, thorough=True)
    except CorruptData as exc:
        yield Finding("records", "state.db", State.MISSING, str(exc), "systemctl restart cri-bridge: it is rebuilt from what runs")
        return
    yield from _content(recorded)
    yield _copy(recorded, copy)


def _content(recorded: Recorded) -> Iterator[Finding]:
    detail = f"{len(recorded.sandboxes)} pods, {len(recorded.containers)} containers, format {recorded.format} of {len(MIGRATIONS)}"
    if recorded.faults:
        mend = "systemctl restart cri-bridge: it is rebuilt from what runs"
        yield Finding("records", "state.db", State.MISSING, f"{recorded.path}: {_few(recorded.faults)}", mend)
    elif recorded.format > len(MIGRATIONS):
        yield Finding("records", "state.db", State.MISSING, f"written by a newer release: {detail}", "install that release")
    else:
        yield Finding("records", "state.db", State.OK, detail)
    for ident, why in recorded.unreadable.items():
        yield Finding("records", f"record {ident[:13]}", State.MISSING, f"{why}; the next start sets it aside")
    for ident, kind, why in recorded.set_aside:
        yield Finding("records", f"record {ident[:13]}", State.ADVICE, f"was set aside from {kind}: {why}")
    for ident, why in recorded.unremoved.items():
        mend = "a running server tries again; cri-bridge doctor --leaks --remove does it at once"
        yield Finding("records", f"remains {ident[:13]}", State.ADVICE, f"{recorded.about(ident)} could not be removed: {why}", mend)
    boot = _BOOT_ID.read_text().strip()
    old = [pod for pod in recorded.sandboxes.values() if pod.boot_id != boot and pod.namespaces]
    if old:
        yield Finding("records", "boot", State.ADVICE, f"{len(old)} pods are of an earlier boot; the next start tells them as stopped")


def _copy(recorded: Recorded, copy: Path) -> Finding:
    """The copy may be a transaction behind, of a server that works: what is recorded of pods that stay must be in it."""
    try:
        behind = recorded.sandboxes.keys() - records_file.read_file(copy).sandboxes.keys() if copy.exists() else None
    except BridgeError as exc:
        return Finding("records", "copy", State.ADVICE, str(exc), "systemctl restart cri-bridge")
    if behind is None:
        return Finding("records", "copy", State.ADVICE, f"{copy} is not there", "systemctl restart cri-bridge")
    if behind:
        return Finding("records", "copy", State.ADVICE, f"{copy} lacks {len(behind)} pods", "systemctl restart cri-bridge")
    return Finding("records", "copy", State.OK, "agrees")


def _leaks(config: Config) -> Finding:
    found = [leak for leak in leaks.audit(config) if leak.certain]
    if not found:
        return Finding("leaks", "leaks", State.OK, "everything has an owner")
    detail = _few([f"{leak.kind} {leak.path}" for leak in found])
    return Finding("leaks", "leaks", State.MISSING, f"{len(found)} without an owner: {detail}", "cri-bridge doctor --leaks --remove")


def _few(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
