"""A monitor process for a test, with shell scripts as its runtimes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import MonitorGone
from bridge.monitor.client import MonitorClient
from bridge.monitor.starting import spawn
from bridge.ports.runtime import ContainerIO

# Not a shell: shells reap children behind one's back, which no runtime does.
_RUNTIME = """
my $pid = fork;
exec("sh", "-c", $ARGV[0]) unless $pid;
open(my $file, ">", $ARGV[1]) or die;
print $file $pid;
close $file;
select(undef, undef, undef, $ARGV[2]);
"""


class Node:
    """A monitor in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "monitor.sock"
        self.log = root / "monitor.log"

    def connect(self, **options: Any) -> contextlib.AbstractAsyncContextManager[MonitorClient]:
        return MonitorClient.connect(self.socket, **options)

    def detach(self, name: str, script: str, *, linger: float = 0) -> list[str]:
        """A runtime verb that starts ``script`` with its own stdio, writes the pid file and ends ``linger`` seconds later."""
        return ["perl", "-e", _RUNTIME, script, str(self.pid_file(name)), str(linger)]

    def pid_file(self, name: str) -> Path:
        return self.root / f"{name}.pid"

    def log_path(self, name: str) -> Path:
        return self.root / "logs" / name / "0.log"

    async def run(self, client: MonitorClient, name: str, script: str, *, argv: Sequence[str] = (), timeout: float = 20, **io: Any) -> int:
        """Launch ``script`` as container ``name``, logging."""
        stdio = ContainerIO(log_path=self.log_path(name), **io)
        argv = argv or self.detach(name, script)
        return await client.launch(name, argv, cwd=self.root, pid_file=self.pid_file(name), io=stdio, timeout=timeout)

    def logged(self, name: str) -> list[tuple[str, str, str]]:
        """Stream, tag and text of each whole entry of the log: a reader may see a part of what is being written."""
        written = self.log_path(name).read_text()
        lines = written[: written.rfind("\n") + 1].splitlines()
        return [(stream, tag, text) for _, stream, tag, text in (line.split(" ", 3) for line in lines)]

    def fds(self, client: MonitorClient) -> int:
        return len(os.listdir(f"/proc/{client.pid}/fd"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await spawn(node.socket, log_file=node.log, log_level="debug")
    async with node.connect() as client:
        pid = client.pid
    yield node
    with contextlib.suppress(MonitorGone):
        async with node.connect(timeout=0.2) as client:
            for task in await client.tasks():
                if task.exit is None:
                    await client.kill(task.id, signal.SIGKILL, group=True)
                    await client.wait(task.id)
            await client.shutdown(force=True)
    await until(lambda: gone(pid))
    errors = [line for line in node.log.read_text().splitlines() if "level=error" in line or "Traceback" in line]
    assert errors == []


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait for something outside that no event tells about."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
