"""What the pod network costs, and how much of it is ours: ``python -m benchmarks.network [rounds]`` (root, Linux).

Makes pods' namespaces, attaches them by the real bridge, host-local and portmap plugins and takes them off again, for
four configurations. "ours" is what a chain takes beyond its plugins' lifetimes, plus, a plugin, what starting a process
from this one takes beyond a bare posix_spawn of the same script.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bridge.aio import Supervisor
from bridge.host import namespaces, process
from bridge.network.cni import Cni, CniSettings
from bridge.ports.network import PodNetworkRequest, PortMapping

_BRIDGE = "cbbench0"
_V4, _V6 = [{"subnet": "10.86.0.0/16"}], [{"subnet": "fd00:86::/64"}]
_ANSWER = '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"],"ips":[{"address":"10.0.0.5/24"}]}'

Lifetimes = dict[tuple[str, str], list[float]]


def _quantiles(samples: Sequence[float]) -> str:
    ordered = sorted(samples)
    return f"{statistics.median(ordered) * 1e3:7.2f} {ordered[int(len(ordered) * 0.9)] * 1e3:7.2f}"


async def _timed(samples: list[float], work: Callable[[], Awaitable[Any]]) -> Any:
    before = time.perf_counter()
    result = await work()
    samples.append(time.perf_counter() - before)
    return result


def _record_lifetimes(lifetimes: Lifetimes) -> None:
    run = process.run

    async def timed(argv: Sequence[str], **options: Any) -> process.Completed:
        before = time.perf_counter()
        done = await run(argv, **options)
        lifetimes.setdefault((options["env"]["CNI_COMMAND"], Path(argv[0]).name), []).append(time.perf_counter() - before)
        return done

    process.run = timed


async def _attachments(directory: Path, rounds: int, *, masquerade: bool, ranges: Any, ports: bool, lifetimes: Lifetimes) -> None:
    conf = directory / "conf"
    conf.mkdir()
    ipam = {"type": "host-local", "dataDir": str(directory / "leases"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": _BRIDGE, "isGateway": True, "ipMasq": masquerade, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    (conf / "a.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": _BRIDGE, "plugins": [bridge, portmap]}))
    made, added, deleted, removed = list[float](), list[float](), list[float](), list[float]()
    settings = CniSettings(conf_dir=conf, bin_dirs=(Path("/usr/lib/cni"),))
    async with Supervisor() as supervisor, Cni.open(settings, supervisor) as cni:
        for number in range(rounds):
            place = directory / f"ns{number}"
            create = functools.partial(namespaces.create, place, net=True, ipc=True, uts=True, hostname="bench", sysctls={})
            pins = await _timed(made, create)
            mappings = (PortMapping(80, 20000 + number),) if ports else ()
            request = PodNetworkRequest(f"bench{number}", "bench", "bench", "bench", pins["net"], port_mappings=mappings)
            attachment = cni.plan(request)
            network = await _timed(added, functools.partial(cni.add, attachment))
            await _timed(deleted, functools.partial(cni.delete, network.attachment))
            await _timed(removed, functools.partial(namespaces.remove, place))
            await asyncio.sleep(0.05)
    rows = [("namespaces create", made), ("ADD, all", added), ("DEL, all", deleted), ("namespaces remove", removed)]
    rows[2:2] = [(f"  {verb} {name}", samples) for (verb, name), samples in lifetimes.items() if verb == "ADD"]
    rows[-1:-1] = [(f"  {verb} {name}", samples) for (verb, name), samples in lifetimes.items() if verb == "DEL"]
    for name, samples in rows:
        print(f"  {name:22s} {_quantiles(samples)}")
    for verb, whole in (("ADD", added), ("DEL", deleted)):
        chains = zip(*(samples for (of, _), samples in lifetimes.items() if of == verb), strict=True)
        print(f"  {verb}: ours, a chain    {_quantiles([total - sum(parts) for total, parts in zip(whole, chains, strict=True)])}")


async def _start_cost(directory: Path, rounds: int) -> None:
    """A plugin that does nothing, by us and by a bare posix_spawn."""
    for name in ("conf", "bin"):
        (directory / name).mkdir()
    script = directory / "bin" / "nothing"
    script.write_text(f"#!/bin/sh\nread -r line\necho '{_ANSWER}'\n")
    script.chmod(0o755)
    (directory / "conf" / "a.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "nothing"}]}))
    ours, bare = list[float](), list[float]()
    settings = CniSettings(conf_dir=directory / "conf", bin_dirs=(directory / "bin",))
    async with Supervisor() as supervisor, Cni.open(settings, supervisor) as cni:
        attachment = cni.plan(PodNetworkRequest("s", "p", "n", "u", directory / "netns"))
        for _ in range(rounds):
            await _timed(ours, lambda: cni.add(attachment))
            before = time.perf_counter()
            _spawn_bare(script)
            bare.append(time.perf_counter() - before)
    print("an empty plugin, ms p50, p90:")
    print(f"  {'by cri-bridge':22s} {_quantiles(ours)}")
    print(f"  {'by posix_spawn':22s} {_quantiles(bare)}")


def _spawn_bare(script: Path) -> None:
    from_child, to_us = os.pipe()
    from_us, to_child = os.pipe()
    os.write(to_child, b"{}\n")
    os.close(to_child)
    actions = [(os.POSIX_SPAWN_DUP2, to_us, 1), (os.POSIX_SPAWN_DUP2, from_us, 0)]
    pid = os.posix_spawn(script, [str(script)], {}, file_actions=actions)
    os.close(to_us)
    os.close(from_us)
    os.read(from_child, 4096)
    os.waitpid(pid, 0)
    os.close(from_child)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_start_cost(Path(directory), rounds * 4))
    lifetimes: Lifetimes = {}
    _record_lifetimes(lifetimes)
    for masquerade, ranges, ports in ((False, [_V4], False), (True, [_V4], False), (True, [_V4, _V6], False), (True, [_V4, _V6], True)):
        print(f"ipMasq {masquerade}, {'dual stack' if len(ranges) > 1 else 'IPv4'}, host port {ports}, ms p50, p90:")
        lifetimes.clear()
        try:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # /run is memory too on a real node
                work = _attachments(Path(directory), rounds, masquerade=masquerade, ranges=ranges, ports=ports, lifetimes=lifetimes)
                asyncio.run(work)
        finally:
            subprocess.run(["ip", "link", "delete", _BRIDGE], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
