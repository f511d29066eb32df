"""Log copying beside conmon: how fast container output becomes CRI log entries.

Both get the same containers from the same runc: a static busybox that waits at a FIFO and then runs ``cat`` on a prepared file, so
that nothing but copying is timed: from the release of all containers to the last exit report (conmon's exit file, our wait), which
both give after the output was drained. Logs go to a tmpfs (``--log-dir`` for another place) and conmon is spared its fsync, so
neither waits for a disk. Rounds alternate between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio

from bridge.monitor.client import MonitorClient
from bridge.monitor.starting import spawn
from bridge.ports.runtime import ContainerIO

from .report import Table
from .workspace import Workspace

SHAPES = ((1, 100), (1, 4096), (50, 100), (50, 4096))
"""Containers and bytes a line."""

_PAYLOAD = 400 << 20
"""Bytes of output of all containers of a round together."""
_DEADLINE = 120.0
_POLL = 0.002


@dataclass(frozen=True)
class Job:
    """One container of a round: its id and bundle, its log, and where it waits."""

    id: str
    bundle: Path
    log: Path
    gate: Path


class Copier(Protocol):
    """What is measured."""

    name: str

    async def start(self, job: Job) -> None: ...
    async def ended(self, jobs: list[Job]) -> None: ...
    async def clear(self, job: Job) -> None: ...


class Runc:
    """runc with a state directory of its own."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root

    def argv(self, *verb: str) -> list[str]:
        return [str(self.path), "--root", str(self.root), *verb]

    async def delete(self, job: Job) -> None:
        await anyio.run_process(self.argv("delete", "--force", job.id), check=False)


class Conmon:
    """One conmon a container, as CRI-O runs it."""

    name = "conmon"

    def __init__(self, runc: Runc, directory: Path) -> None:
        self._runc = runc
        self._exits = directory / "exits"
        self._exits.mkdir(parents=True)

    async def start(self, job: Job) -> None:
        argv = ["conmon", "--cid", job.id, "--cuuid", job.id, "--name", job.id, "--bundle", str(job.bundle), "--no-sync-log"]
        argv += ["--runtime", str(self._runc.path), f"--runtime-arg=--root={self._runc.root}", "--socket-dir-path", str(job.bundle)]
        argv += ["--container-pidfile", str(job.bundle / "pid"), "--conmon-pidfile", str(job.bundle / "conmon.pid")]
        argv += ["--exit-dir", str(self._exits), "--log-path", f"k8s-file:{job.log}"]
        await anyio.run_process(argv)
        with anyio.fail_after(_DEADLINE):
            while not (job.bundle / "pid").exists():
                await anyio.sleep(_POLL)
        await anyio.run_process(self._runc.argv("start", job.id))

    async def ended(self, jobs: list[Job]) -> None:
        waiting = {self._exits / job.id for job in jobs}
        while waiting := {file for file in waiting if not file.exists()}:
            await anyio.sleep(_POLL)

    async def clear(self, job: Job) -> None:
        await self._runc.delete(job)
        (self._exits / job.id).unlink(missing_ok=True)


class Monitor:
    """Our monitor, one for all."""

    name = "cri-bridge"

    def __init__(self, runc: Runc, client: MonitorClient) -> None:
        self._runc = runc
        self._client = client

    async def start(self, job: Job) -> None:
        pid_file = job.bundle / "pid"
        argv = self._runc.argv("run", "--detach", "--bundle", str(job.bundle), "--pid-file", str(pid_file), job.id)
        await self._client.launch(job.id, argv, cwd=job.bundle, pid_file=pid_file, io=ContainerIO(log_path=job.log), timeout=30)

    async def ended(self, jobs: list[Job]) -> None:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(self._client.wait, job.id)

    async def clear(self, job: Job) -> None:
        await self._runc.delete(job)
        await self._client.forget(job.id)


@asynccontextmanager
async def _monitor(runc: Runc, directory: Path) -> AsyncIterator[Monitor]:
    directory.mkdir()
    await spawn(directory / "sock", log_file=directory / "log", log_level="warning")
    async with MonitorClient.connect(directory / "sock") as client:
        try:
            yield Monitor(runc, client)
        finally:
            await client.shutdown(force=True)


class Yard:
    """The bundles, the payload and the log directory of one run."""

    def __init__(self, root: Path, logs: Path, cgroup: str) -> None:
        self._root = root
        self._logs = logs
        self._cgroup = cgroup
        self._count = 0
        self._rootfs = root / "rootfs"
        for name in ("bin", "proc", "dev", "data", "gate"):
            (self._rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        if busybox is None:
            raise SystemExit("the log benchmark needs a static busybox (Debian: busybox-static)")
        shutil.copy(busybox, self._rootfs / "bin/busybox")
        for name in ("sh", "cat"):
            (self._rootfs / "bin" / name).symlink_to("busybox")
        self.data = logs / "data"
        self.data.mkdir()

    def payload(self, containers: int, line: int) -> int:
        """Write the file that each container prints; returns its size."""
        lines = _PAYLOAD // containers // line
        with (self.data / "payload").open("wb") as file:
            for _ in range(lines):
                file.write(b"x" * (line - 1) + b"\n")
        return lines * line

    def job(self) -> Job:
        """A container that waits at its gate."""
        self._count += 1
        name = f"{self._cgroup}-{self._count}"
        bundle = self._root / "bundles" / name
        gates = bundle / "gate"
        gates.mkdir(parents=True)
        os.mkfifo(gates / "fifo")
        (bundle / "config.json").write_text(json.dumps(self._spec(name, gates)))
        return Job(name, bundle, self._logs / f"{name}.log", gates / "fifo")

    def _spec(self, name: str, gates: Path) -> dict[str, Any]:
        bind = {"type": "bind", "options": ["bind", "ro"]}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", "read go < /gate/fifo; exec cat /data/payload"],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": str(self._rootfs), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "source": str(self.data), **bind},
                {"destination": "/gate", "source": str(gates), **bind},
            ],
            "linux": {
                "cgroupsPath": f"/{self._cgroup}/logs/{name}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            },
        }


async def _round(copier: Copier, yard: Yard, containers: int, size: int, line: int) -> float:
    """Payload bytes a second of one round."""
    jobs = [yard.job() for _ in range(containers)]
    gates: list[int] = []
    try:
        for job in jobs:
            gates.append(os.open(job.gate, os.O_RDWR | os.O_CLOEXEC))
            await copier.start(job)
        begin = time.perf_counter()
        for gate in gates:
            os.write(gate, b"\n")
        with anyio.fail_after(_DEADLINE):
            await copier.ended(jobs)
        seconds = time.perf_counter() - begin
        _check(jobs[0].log, size, line)
        return containers * size / seconds
    finally:
        for gate in gates:
            os.close(gate)
        for job in jobs:
            await copier.clear(job)
            job.log.unlink(missing_ok=True)
            shutil.rmtree(job.bundle)


def _check(log: Path, size: int, line: int) -> None:
    """Whether the log has every byte: otherwise the figure would be worth nothing."""
    text = full = 0
    with log.open("rb") as file:
        for entry in file:
            _, _, tag, rest = entry.split(b" ", 3)
            text += len(rest) - (tag == b"P")
            full += tag == b"F"
    if (text, full) != (size, size // line):
        raise SystemExit(f"{log}: {text} bytes in {full} lines, expected {size} in {size // line}")


async def measure(workspace: Workspace, runtime: Path, *, rounds: int = 9, log_dir: Path = Path("/dev/shm")) -> Table:
    """The table: payload MB/s (10^6) of conmon and of our monitor, alternating for ``rounds`` rounds a shape."""
    runc = Runc(runtime, workspace.directory("logs", "runc"))
    table = Table("Log copying", "payload MB/s, more is better", (Conmon.name, Monitor.name), shares=(0.5,))
    table.notes.append(f"Both with {runtime.name}, logs on {log_dir}; {_PAYLOAD >> 20} MiB a round, {rounds} rounds each, alternating.")
    logs = Path(tempfile.mkdtemp(prefix=f"{workspace.name}-", dir=log_dir))
    try:
        yard = Yard(workspace.directory("logs", "yard"), logs, workspace.name)
        async with _monitor(runc, workspace.directory("logs") / "monitor") as monitor:
            copiers: tuple[Copier, ...] = (Conmon(runc, workspace.directory("logs") / "conmon"), monitor)
            for containers, line in SHAPES:
                size = yard.payload(containers, line)
                label = f"{containers} × {line}-byte lines"
                for number in range(rounds + 1):
                    for copier in copiers:
                        speed = await _round(copier, yard, containers, size, line) / 1e6
                        if number:  # the first of each is a rehearsal
                            table.add(label, copier.name, speed)
                print(f"logs: {label} done", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(logs)
    return table


def main() -> int:
    """``python -m benchmarks.logs``: only this table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds a shape and side (default %(default)s)")
    parser.add_argument("--log-dir", type=Path, default=Path("/dev/shm"), help="where the logs go (default %(default)s)")
    parser.add_argument("--runtime", type=Path, default=Path(shutil.which("runc") or "runc"))
    arguments = parser.parse_args()
    print(subprocess.run(["conmon", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0], file=sys.stderr)
    with Workspace() as workspace:
        table = anyio.run(lambda: measure(workspace, arguments.runtime, rounds=arguments.rounds, log_dir=arguments.log_dir))
    print(table.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
