"""A host for shims: bundles of a static busybox, fifos that are read, the events' socket. Used on the wire, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio

from bridge.errors import RuntimeFailed
from bridge.shimv2.addresses import socket_name
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.events import ShimEvent, serve_events
from bridge.shimv2.verbs import ShimBinary
from tests.integration.oci_node import make_rootfs

SECONDS = 30.0


class Fifo:
    """A fifo that is held open and read, so that a shim's open never waits."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o700)
        self.path = path
        self.data = b""
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._news = anyio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        self.data += os.read(self._fd, 65536)
        self._news.set()

    async def until(self, wanted: bytes) -> None:
        with anyio.fail_after(SECONDS):
            while wanted not in self.data:
                self._news = anyio.Event()
                await self._news.wait()

    def pause(self) -> None:
        """Read no more, until ``resume``."""
        asyncio.get_running_loop().remove_reader(self._fd)

    def resume(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def write(self, data: bytes) -> None:
        """Only for a fifo of stdin, which is then not read here."""
        self.pause()
        os.write(self._fd, data)

    def close(self) -> None:
        """Repeatable."""
        if self._fd >= 0:
            self.pause()
            os.close(self._fd)
            self._fd = -1


class ShimNode:
    """The host; ``binary`` is the shim's."""

    def __init__(self, root: Path, path: str, name: str) -> None:
        self.root = root
        self.rootfs = make_rootfs(root / "rootfs")
        self.events: list[ShimEvent] = []
        self._event = anyio.Event()
        self.binary = ShimBinary(Path(path), name, events=root / "events.sock")
        self._fifos: list[Fifo] = []
        self.bundles: list[Path] = []
        self.logs: dict[str, Fifo] = {}
        self._sockets: list[str] = []

    def bundle(self, *args: str, annotations: dict[str, str] | None = None, name: str = "", **process: Any) -> Path:
        """A bundle with its log already read; its name is the task's id."""
        bundle = self.root / (name or f"task-{secrets.token_hex(8)}")
        bundle.mkdir()
        self.bundles.append(bundle)
        self.logs[bundle.name] = self.fifo(bundle / "log")
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
        ]
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.rootfs)},
            "process": {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], **process},
            "mounts": mounts,
            "annotations": annotations or {},
            "linux": {
                "namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts")],
                "cgroupsPath": f"/{bundle.name}",
            },
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def fifo(self, path: Path) -> Fifo:
        made = Fifo(path)
        self._fifos.append(made)
        return made

    def take(self, event: ShimEvent) -> None:
        self.events.append(event)
        self._event.set()

    async def event(self, wanted: Callable[[ShimEvent], bool]) -> ShimEvent:
        """The first event that is wanted, now or when it comes."""
        with anyio.fail_after(SECONDS):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._event = anyio.Event()
                await self._event.wait()

    def shims(self) -> list[int]:
        """Shims of this binary whose command line names a task of ours."""
        names = {bundle.name for bundle in self.bundles}
        return sorted(pid for pid, argv in processes() if Path(argv[0]).name == self.binary.path.name and names.intersection(argv))

    @contextlib.asynccontextmanager
    async def task(self, bundle: Path) -> AsyncIterator[tuple[TtrpcClient, str]]:
        """Start the shim of ``bundle`` and connect; with the name of its task service."""
        address = await self.binary.start(bundle.name, bundle)
        self._sockets.append(socket_name(address.address))
        async with TtrpcClient.connect(address.address, handler=self.binary.handler) as client:
            yield client, address.task_service

    def close(self) -> None:
        for fifo in self._fifos:
            fifo.close()
        for name in self._sockets:  # a shim that was killed leaves its own
            Path(name).unlink(missing_ok=True)


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process, with its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(SECONDS):
        while not condition():
            await anyio.sleep(0.02)


@contextlib.asynccontextmanager
async def shim_node(root: Path, path: str, name: str) -> AsyncIterator[ShimNode]:
    """A node with no shim left at its end: each is asked through its binary to clean up, and killed if it still lives."""
    node = ShimNode(root, path, name)
    try:
        async with serve_events(root / "events.sock", node.take):
            try:
                yield node
            finally:
                for pid in node.shims():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                for bundle in reversed(node.bundles):
                    with contextlib.suppress(RuntimeFailed):  # some shims don't know any more what has ended well
                        await node.binary.delete(bundle.name, bundle)
                await until(lambda: not node.shims())
    finally:
        node.close()
