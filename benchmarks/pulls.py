"""Pulling and unpacking: an image in one and in many layers, again when it is there, ten at once; wall time, CPU time, memory.

cri-bridge and containerd are asked by PullImage; skopeo with umoci stands for tools without a server. They take turns. Every round has
copies of the images of its own and nothing is removed before the end: a file system that has just lost a big tree makes new files slowly
(ext4 passes by inodes that were not deleted in the last minutes), and that would be measured. Before each pull the disk is synced, so
that nobody waits for what another has written; what a server syncs itself is in its own time.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import anyio
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as cri
from bridge.testing.registry import registry

from .memory import pss_mib
from .pull_images import Sizes, push, push_one, push_sizes
from .report import Table
from .rpc import IMAGE
from .servers import Running
from .workspace import Workspace

TOOLS = "skopeo+umoci"
SIZES = (100, 300, 1000)
"""MiB of the images of the memory table."""
_SMALL = Sizes(8 << 20, 200)
"""Of the image that is pulled again and again: its size does not matter then."""
_SECONDS = 600.0
_REST = 1.0  # for what a server does behind the caller's back, so that its CPU time counts
_SAMPLE = 0.05


class _Peak(threading.Thread):
    """The highest PSS that the processes of a server were seen to have together, in MiB."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        super().__init__(daemon=True)
        self._workspace, self._name = workspace, name
        self._over = threading.Event()
        self.mib = 0.0

    def run(self) -> None:
        while not self._over.wait(_SAMPLE):
            seen = self._workspace.processes(self._name)
            self.mib = max(self.mib, sum(_pss(pid) for pid in seen if not _is_twin(pid, seen)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def _is_twin(pid: int, others: Sequence[int]) -> bool:
    """Whether it was spawned and runs no program of its own yet: then it borrows its parent's memory (vfork), which counts once."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return parent in others and Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{parent}/cmdline").read_bytes()
    except (OSError, IndexError):
        return True


def _pss(pid: int) -> float:
    try:
        return pss_mib(pid)
    except (OSError, RuntimeError):  # it ended
        return 0.0


class _Tables:
    """What is measured of each pull."""

    def __init__(self, names: Sequence[str], wall: str, cpu: str) -> None:
        self.wall = Table(wall, "s", names, shares=(0.5,))
        self.cpu = Table(cpu, "s", names, shares=(0.5,))
        self.memory = Table("Highest PSS of all processes", "MiB", names, shares=(0.5,))

    async def timed(self, workspace: Workspace, name: str, label: str, work: Callable[[], Awaitable[object]]) -> None:
        """Measure ``work`` of server ``name``."""
        await anyio.run_process(["sync"])
        cpu = workspace.cpu_ms(name)
        with _Peak(workspace, name) as peak:
            begin = time.perf_counter()
            await work()
            wall = time.perf_counter() - begin
        await anyio.sleep(_REST)
        self.wall.add(label, name, wall)
        self.cpu.add(label, name, (workspace.cpu_ms(name) - cpu) / 1e3)
        self.memory.add(label, name, peak.mib)


async def _pull(server: Running, reference: str) -> None:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
    await server.rpc.timed("PullImage", request, service=IMAGE, timeout=_SECONDS)


async def _by_server(server: Running, big: Mapping[tuple[int, str], str], small: Sequence[str], tables: _Tables) -> None:
    workspace, name = server.workspace, server.name
    for (layers, compression), reference in big.items():
        label = f"{compression}, {layers} layer{'s' * (layers > 1)}"
        await tables.timed(workspace, name, label, lambda reference=reference: _pull(server, reference))  # type: ignore[misc]
        if (layers, compression) == (1, "gzip"):
            await tables.timed(workspace, name, "again, when it is there", lambda reference=reference: _pull(server, reference))  # type: ignore[misc]

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for reference in small:
                group.start_soon(_pull, server, reference)

    await tables.timed(workspace, name, f"{len(small)} images at once", all_at_once)


def _run_in(workspace: Workspace, argv: Sequence[str]) -> None:
    """Run a tool in the cgroup of the tools. Raises RuntimeError."""
    # Through a shell that waits for us: all of the tool's time is to be counted.
    command = ["sh", "-c", 'read go && exec "$@"', "sh", *argv]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    workspace.adopt(TOOLS, process.pid)
    said = process.communicate("go\n", timeout=_SECONDS)[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {said.strip()}")


async def _by_tools(workspace: Workspace, big: Mapping[tuple[int, str], str], number: int, tables: _Tables) -> None:
    for (layers, compression), reference in big.items():
        if compression != "gzip":
            continue  # umoci of Debian 12 knows no zstd
        directory = workspace.directory("tools", str(number), str(layers))

        def both(reference: str = reference, directory: Path = directory) -> None:
            source, layout = f"docker://{reference}", f"{directory}/layout"
            _run_in(workspace, ["skopeo", "copy", "-q", "--src-tls-verify=false", source, f"oci:{layout}:1"])
            _run_in(workspace, ["umoci", "raw", "unpack", "--image", f"{layout}:1", f"{directory}/files"])

        await tables.timed(workspace, TOOLS, f"gzip, {layers} layer{'s' * (layers > 1)}", lambda both=both: run_sync(both))  # type: ignore[misc]


async def measure(servers: Sequence[Running], workspace: Workspace, *, rounds: int, sizes: Sizes) -> list[Table]:
    """The tables; the registry that they pull from lives in ``workspace`` too."""
    tools = all(shutil.which(tool) for tool in ("skopeo", "umoci"))
    with registry(workspace.directory("images") / "registry") as host:
        pushed = await run_sync(push, host, sizes, rounds)
        names = [*([TOOLS] if tools else []), *(server.name for server in servers)]
        what = f"{pushed.bytes >> 20} MiB in {pushed.files} files"
        tables = _Tables(names, f"Pull and unpack, {what}: wall time", "CPU time of all processes, one second of rest included")
        _run_in(workspace, ["true"])  # makes the cgroup whose CPU time is read
        for number, (big, small) in enumerate(zip(pushed.big, pushed.small, strict=True)):
            if tools:
                await _by_tools(workspace, big, number, tables)
            for server in servers:
                await _by_server(server, big, small, tables)
    for table in (tables.wall, tables.cpu):
        table.notes.append(_ratios(table))
    return [tables.wall, tables.cpu, tables.memory]


async def measure_memory(servers: Sequence[Running], workspace: Workspace, *, rounds: int, mebibytes: Sequence[int] = SIZES) -> list[Table]:
    """What a pull takes in memory at its peak, by the size of the image: one layer each, the same files again and again."""
    with registry(workspace.directory("images") / "registry") as host:
        pushed = await run_sync(push_sizes, host, mebibytes, rounds)
        tables = _Tables([server.name for server in servers], "Pull and unpack one layer by its size: wall time", "CPU time")
        for references in pushed:
            for server in servers:
                for size, reference in references.items():
                    await tables.timed(workspace, server.name, f"{size} MiB", lambda s=server, r=reference: _pull(s, r))  # type: ignore[misc]
    return [tables.memory, tables.wall]


async def measure_again(servers: Sequence[Running], workspace: Workspace, *, rounds: int) -> list[Table]:
    """What it takes to pull an image that is there already: the servers take turns, CPU time is the mean of all rounds."""
    names = [server.name for server in servers]
    wall = Table("Pull an image that is there", "ms", names)
    cpu = Table("CPU time of all processes for each of these pulls", "ms", names, shares=())
    with registry(workspace.directory("images") / "registry") as host:
        reference = await run_sync(push_one, host, _SMALL)
        for server in servers:
            for _ in range(2):  # the second is the first of its kind
                await _pull(server, reference)
        await anyio.run_process(["sync"])
        await anyio.sleep(_REST)
        before = {name: workspace.cpu_ms(name) for name in names}
        for number in range(rounds):
            for server in servers if number % 2 else reversed(servers):
                begin = time.perf_counter()
                await _pull(server, reference)
                wall.add("again, when it is there", server.name, (time.perf_counter() - begin) * 1e3)
        await anyio.sleep(_REST)
        for name in names:
            cpu.add("again, when it is there", name, (workspace.cpu_ms(name) - before[name]) / rounds)
    return [wall, cpu]


def _ratios(table: Table) -> str:
    """The last server's median by the best of the others', row by row."""
    *others, ours = table.servers
    lines = []
    for label, samples in table.rows.items():
        best = min((sorted(samples[name])[len(samples[name]) // 2] for name in others if samples.get(name)), default=0.0)
        own = sorted(samples[ours])[len(samples[ours]) // 2] if samples.get(ours) else 0.0
        if best and own:
            lines.append(f"{label}: {own / best:.2f}")
    return f"{ours} by the best of the others: {'; '.join(lines)}."
