"""A host for handlers on a containerd shim: a real monitor, containerd's shim for runc, a busybox root filesystem."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from bridge.generic.shim import ShimOptions
from bridge.generic.shim import settings as shim_settings
from bridge.host import cgroups
from bridge.monitor.client import MonitorClient
from bridge.monitor.starting import spawn
from bridge.ports.host import RuntimeTimeouts
from bridge.ports.runtime import ContainerIO, ContainerSpec, SandboxSpec
from bridge.shimv2.backend import ShimBackend, open_backend
from tests.integration import pod_cgroups
from tests.integration.oci_node import OciNode

SHIM = os.environ.get("BRIDGE_TEST_SHIM") or shutil.which("containerd-shim-runc-v2")


class ShimHost(OciNode):
    """As the host of the OCI backend, but ``backend`` opens a handler with ``options`` of plugin "shim"."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, "runc")
        self.options = ShimOptions(path=SHIM or "", trial=False, **options)
        self.changes: dict[str, Any] = {}
        self.timeouts = RuntimeTimeouts(kill=5.0)

    @contextlib.asynccontextmanager
    async def shims(self) -> AsyncIterator[ShimBackend]:
        """A server's life: connect to the monitor and open the handler."""
        async with MonitorClient.connect(self.socket) as client:
            self.client = client
            try:
                settings = replace(shim_settings("shim", self.options, self.context()), **self.changes)
                async with open_backend(settings, self.context()) as backend:
                    yield backend
            finally:
                self.client = None

    async def replace_monitor(self) -> None:
        """Kill the monitor, and connect to its successor."""
        assert self.client is not None
        os.kill(self.client.pid, signal.SIGKILL)
        await self.client.closed.wait()
        await spawn(self.socket, log_file=self.root / "monitor.log", log_level="debug")

    @contextlib.asynccontextmanager
    async def reconnected(self) -> AsyncIterator[None]:
        """Be connected to the monitor that is there now."""
        async with MonitorClient.connect(self.socket) as self.client:
            yield

    def with_main(self, pod: SandboxSpec) -> SandboxSpec:
        """``pod`` with a container of its own, as the kinds CONTAINER and VM have."""
        return replace(pod, oci=self.oci(pod.id, ["/bin/sleep", "1000"]))

    def container(self, pod: SandboxSpec, args: list[str], *, io: ContainerIO | None = None, **oci: Any) -> ContainerSpec:
        """Logging, beside its bundle, where a shim wants a fifo of the same name."""
        spec = super().container(pod, args, io=io or ContainerIO(terminal=oci.get("tty", False)), **oci)
        return replace(spec, io=replace(spec.io, log_path=spec.bundle.with_suffix(".log")))

    def log(self, spec: ContainerSpec) -> list[str]:
        assert spec.io.log_path is not None
        written = spec.io.log_path.read_text() if spec.io.log_path.exists() else ""
        return [line.split(" ", 3)[3] for line in written[: written.rfind("\n") + 1].splitlines()]

    def marks(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "state" / "shim").glob("*.json"))

    def pids(self, word: str = "") -> list[int]:
        """Shims of this host, of the task ``word`` alone if given."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                pid, where = int(entry), os.readlink(f"/proc/{entry}/cwd")
                argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if where.startswith(f"{self.root}/") and b"-namespace" in argv and (not word or word.encode() in argv):
                    found.append(pid)
        return sorted(found)

    def leftovers(self) -> list[str]:
        """Cgroups below the pod's, shims, marks, the runtime's state, exec files, tasks of shims."""
        found = [str(child) for directory in self.directories() for child in directory.iterdir() if child.is_dir()]
        found += [f"shim {pid}" for pid in self.pids()] + self.marks()
        found += [str(path) for path in (self.root / "state" / "shim" / "runc" / "cri-bridge").glob("*")]
        return found + [str(path) for path in self.root.glob("pod-*/*/exec-*")]


@contextlib.asynccontextmanager
async def shim_host(root: Path, **options: Any) -> AsyncIterator[ShimHost]:
    """A host whose every process, cgroup and mount is gone afterwards."""
    host = ShimHost(root, **options)
    pod_cgroups.create(host.cgroup)
    try:
        await spawn(host.socket, log_file=root / "monitor.log", log_level="debug")
        yield host
    finally:
        for pid in host.pids():
            os.kill(pid, signal.SIGKILL)
        async with MonitorClient.connect(host.socket) as client:
            await client.shutdown(force=True)
        cgroups.layout.cache_clear()
        pod_cgroups.remove(host.cgroup)


async def logged(host: ShimHost, spec: ContainerSpec, count: int) -> list[str]:
    """The log's texts, once there are at least ``count``."""
    with anyio.fail_after(30):
        while len(host.log(spec)) < count:
            await anyio.sleep(0.02)
    return host.log(spec)
