"""`python -m benchmarks WHAT` (see --help): needs root, both servers, runtimes."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType

import anyio

from . import cycle, forwards, gvisor, lists, logs, machine, memory, pulls, restart, soak, stats, streaming
from .pull_images import Sizes
from .report import Table
from .servers import Options, containerd, cri_bridge
from .workspace import Workspace

_TABLES = ("cycle", "list", "stats", "memory", "logs", "network", "pull", "streaming", "forward", "gvisor")
_ALONE = ("restart", "soak")
"""Of cri-bridge alone, and only when asked for by name."""
SERVERS = {"containerd": containerd, "cri-bridge": cri_bridge}


def _default_runtime() -> Path:
    return Path(shutil.which("runc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "runc")


def _default_cni_bin() -> Path:
    candidates = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    return next((path for path in candidates if (path / "bridge").exists()), candidates[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=[*_TABLES, "all", *_ALONE], help="which table (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="timed pod cycles a server (default 40)")
    parser.add_argument("--pods", type=int, default=50, help="pods of the list, stats and memory benchmarks (default 50)")
    parser.add_argument("--containers", type=int, default=4, help="containers a pod of the list and stats benchmarks (default 4)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each line of the stats benchmark's CPU table (default 20)")
    parser.add_argument("--cycles", type=int, default=1000, help="pod cycles of the soak (default 1000)")
    parser.add_argument("--at-once", type=int, default=3, help="pods of the soak under way together (default 3)")
    parser.add_argument("--pulls", type=int, default=5, help="rounds of the pull benchmark (default 5)")
    parser.add_argument("--mebibytes", type=int, default=256, help="what each stream of the streaming benchmark carries (default 256)")
    parser.add_argument("--connections", type=int, default=1000, help="forwarded connections of a session (default 1000)")
    parser.add_argument("--memory", action="store_true", help="with pull: peak memory by the size of the image instead")
    parser.add_argument("--again", action="store_true", help="with pull: --rounds times a small image that is there instead")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="only this one; may be repeated (default: both)")
    parser.add_argument("--runtime", type=Path, default=_default_runtime(), help="runc, used by both servers (default %(default)s)")
    parser.add_argument("--runsc", type=Path, default=Path(shutil.which("runsc") or "runsc"), help="for gvisor (default %(default)s)")
    parser.add_argument("--runsc-flag", action="append", default=[], help="with gvisor: before each verb of runsc; may be repeated")
    parser.add_argument("--cni-bin", type=Path, default=_default_cni_bin(), help="directory of the CNI plugins (default %(default)s)")
    parser.add_argument(
        "--disk", type=Path, default=Path("/tmp"), help="where the servers keep what lies below /var/lib on a node (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="also write all samples to this file")
    return parser


async def _fresh(workspace: Workspace, arguments: argparse.Namespace, what: str) -> list[Table]:
    """Start the servers anew, so that no table depends on the one before, and make the table ``what``."""
    options = Options(arguments.runtime, arguments.cni_bin)
    async with AsyncExitStack() as stack:
        names = arguments.server or list(SERVERS)
        running = [await stack.enter_async_context(SERVERS[name](workspace, options)) for name in names]
        print(f"{what}: {', '.join(server.version for server in running)}", file=sys.stderr, flush=True)
        if what == "cycle":
            return await cycle.measure(running, rounds=arguments.rounds)
        if what == "list":
            return [await lists.measure(running, pods=arguments.pods, containers=arguments.containers)]
        if what == "stats":
            full = functools.partial(stats.measure, pods=arguments.pods, containers=arguments.containers)
            return await full(running, rounds=arguments.rounds, seconds=arguments.seconds)
        if what == "pull":
            if arguments.again:
                return await pulls.measure_again(running, workspace, rounds=arguments.rounds)
            if arguments.memory:
                return await pulls.measure_memory(running, workspace, rounds=arguments.pulls)
            return await pulls.measure(running, workspace, rounds=arguments.pulls, sizes=Sizes())
        if what == "streaming":
            return await streaming.measure(running, rounds=arguments.rounds, mebibytes=arguments.mebibytes)
        if what == "forward":
            return await forwards.measure(running, rounds=max(5, arguments.rounds // 4), connections=arguments.connections)
        return [await memory.measure(running, counts=sorted({0, 20, arguments.pods}))]


async def _gvisor(workspace: Workspace, arguments: argparse.Namespace) -> list[Table]:
    """cri-bridge alone, beside runsc by hand."""
    runsc, flags = arguments.runsc.resolve(), arguments.runsc_flag
    options = Options(arguments.runtime, arguments.cni_bin, gvisor.handler_toml(runsc, flags))
    async with cri_bridge(workspace, options) as server:
        with gvisor.bare(runsc, flags, workspace) as hand:
            return await gvisor.measure(server, hand, rounds=arguments.rounds, pods=min(arguments.pods, 10))


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a signal handler's signature)
    """End the run on SIGTERM as on ^C: by an exception, so that everything is cleaned up."""
    raise KeyboardInterrupt


def _tables(arguments: argparse.Namespace, what: str) -> list[Table]:
    with Workspace(arguments.disk) as workspace:
        if what == "logs":
            return [anyio.run(logs.measure, workspace, arguments.runtime)]
        if what == "gvisor":
            return anyio.run(_gvisor, workspace, arguments)
        return anyio.run(_fresh, workspace, arguments, what)


def _network(rounds: int) -> str:
    """The network benchmark has a process of its own: what it times, it times by replacing a function of the server."""
    command = [sys.executable, "-m", "benchmarks.network", str(rounds)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout
    return f"### Pod network, {rounds} rounds\n\n```\n{text.rstrip()}\n```\n"


def _alone(arguments: argparse.Namespace) -> int:
    """Benchmarks that have a verdict. Returns the exit code."""
    options = Options(arguments.runtime, arguments.cni_bin)
    with Workspace(arguments.disk) as workspace:
        if arguments.what == "restart":
            full = functools.partial(restart.measure, pods=arguments.pods, containers=arguments.containers, rounds=arguments.rounds)
            print(anyio.run(full, workspace, options).markdown())
            return 0
        samples = anyio.run(functools.partial(soak.soak, cycles=arguments.cycles, at_once=arguments.at_once), workspace, options)
    found = soak.faults(samples)
    print(soak.markdown(samples), "", "\n".join(found) or f"flat over {arguments.cycles} pod cycles", sep="\n")
    return 1 if found else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables asked for and print them as Markdown."""
    arguments = _parser().parse_args(argv)
    if os.geteuid() != 0:
        print("the benchmarks need root: they make network namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    print(f"Machine: {machine.describe()}.", end="\n\n")
    print(f"Versions: {machine.versions(arguments.runtime, arguments.cni_bin)}.", end="\n\n")
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments.what in _ALONE:
        return _alone(arguments)
    tables: list[Table] = []
    for what in _TABLES:
        if arguments.what not in (what, "all"):
            continue
        if what == "network":
            print(_network(arguments.rounds), flush=True)
            continue
        for table in _tables(arguments, what):
            print(table.markdown(), flush=True)
            tables.append(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([table.raw() for table in tables], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
