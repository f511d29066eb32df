"""A private cri-bridge that can be killed and started again, for what no other server is compared with: restarts and soaks."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from bridge._proto.runtime import v1 as cri

from .images import WORKLOAD, write_layouts
from .rpc import Rpc, connect
from .servers import Options, Running, write_config
from .workspace import Workspace

NAME = "cri-bridge"
_READY = 120.0
_END = 90.0


class Node:
    """The server's command, its configuration and its process. Leaving the context ends the process; containers go on."""

    def __init__(self, workspace: Workspace, options: Options) -> None:
        self.workspace = workspace
        self.directory = workspace.directory(NAME)
        self.run = workspace.run_directory(NAME)
        self.socket = self.run / "cri.sock"
        self.state = self.directory / "state"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.run / "notify"))
        self._command = [sys.executable, "-m", "bridge", "--config", str(write_config(workspace, options))]
        path = os.pathsep.join(path for path in sys.path if path)
        # Installed modules are compiled when they are installed; here the first start does it.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(workspace.directory("compiled"))}
        self._env = {**os.environ, **compiled, "PYTHONPATH": path, "NOTIFY_SOCKET": str(self.run / "notify")}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self.end(signal.SIGTERM)
        self._notify.close()

    @property
    def pid(self) -> int:
        """The server's pid."""
        assert self._process is not None
        return self._process.pid

    @property
    def monitor(self) -> int:
        """The monitor's pid: the other process of the server's cgroup that lasts. Raises RuntimeError when there is none."""
        for pid in self.workspace.processes(NAME):
            with suppress(OSError):
                if pid != self.pid and b"bridge.monitor" in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b" ", b"."):
                    return pid
        raise RuntimeError("the server has no monitor")

    def spawn(self) -> None:
        """Start the server; don't wait for it."""
        with suppress(BlockingIOError):
            while self._notify.recv(256, socket.MSG_DONTWAIT):
                pass
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self._env,
                start_new_session=True,
            )
        self.workspace.adopt(NAME, self._process.pid)

    def wait_ready(self) -> float:
        """Block until the server told its service manager READY=1; when that was (time.perf_counter). Raises RuntimeError."""
        assert self._process is not None
        deadline = time.monotonic() + _READY
        while time.monotonic() < deadline and self._process.poll() is None:
            if select.select([self._notify], [], [], 0.05)[0] and b"READY=1" in self._notify.recv(256):
                return time.perf_counter()
        raise RuntimeError(f"the server does not become ready:\n{(self.directory / 'server.log').read_text()[-4000:]}")

    def end(self, number: signal.Signals) -> None:
        """End the server and wait for that."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(_END)
        self._process = None

    def import_image(self) -> None:
        """Put the workload's image into the store."""
        archive = write_layouts(self.workspace.directory("images"))[0]
        command = [*self._command, "image", "import", "--name", WORKLOAD, str(archive)]
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=self._env)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Running]:
        """Calls to the running server."""
        async with connect(self.socket, cri.VersionRequest()) as rpc:
            version = await rpc.call("Version", cri.VersionRequest(), cri.VersionResponse)
            yield Running(NAME, f"{version.runtime_name} {version.runtime_version}", rpc, self.directory, self.workspace)


async def started(node: Node) -> None:
    """Start a node for the first time, with its image."""
    node.spawn()
    await anyio.to_thread.run_sync(node.wait_ready)
    await anyio.to_thread.run_sync(node.import_image)


async def first_list(socket_path: Path) -> tuple[float, int]:
    """Ask for the containers until the server answers; when the answer came (time.perf_counter), and how many there are."""
    request = cri.ListContainersRequest()
    with anyio.fail_after(_READY):
        while True:
            with suppress(OSError):
                probe = socket.socket(socket.AF_UNIX)
                try:
                    probe.connect(str(socket_path))
                finally:
                    probe.close()
                break
            await anyio.sleep(0.002)
        async with connect(socket_path, cri.VersionRequest()) as rpc:
            answer = await Rpc.call(rpc, "ListContainers", request, cri.ListContainersResponse)
            return time.perf_counter(), len(answer.containers)
