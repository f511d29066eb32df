"""A private place for the demo: directories, a CNI network of its own, a server and its monitor, and their end.

Nothing of the host's configuration is read or changed. The network's bridge has no address and forwards nowhere, so no
sysctl and no firewall rule is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge.config import Config
from bridge.config_docs import toml_value
from bridge.errors import HostError
from bridge.host import cgroups
from bridge.host.process import run
from bridge.testing.leaks import Scope
from bridge.testing.private_server import PrivateServer, end_monitor, remove_bridge

_STOP_TIMEOUT = 40.0
NETWORK = "cri-bridge-demo"
_SUBNET = "198.18.77.0/24"  # RFC 2544: set aside for tests, routed nowhere


@dataclass(frozen=True)
class DemoHost:
    """The private place below ``root``, and the names that are its own on this host."""

    root: Path

    @property
    def name(self) -> str:
        """Marks cgroups; unique as long as this process lives, and the name of a systemd slice too."""
        return f"cribridgedemo{os.getpid()}"

    @property
    def bridge(self) -> str:
        """The network device of the demo's network (at most 15 characters)."""
        return f"cbdemo{os.getpid()}"[:15]

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def leases(self) -> Path:
        """Where host-local keeps the addresses that it gave."""
        return self.root / "ipam"

    def scope(self, pids: Sequence[int] = ()) -> Scope:
        """What pods may use and must give back, and the processes that serve them."""
        network = self.leases / NETWORK
        kept = [network, network / "lock", network / "last_reserved_ip.0", self.run_dir / "sandboxes"]
        caches = [path / ".cache" for path in self.run_dir.glob("runtimes/*")]  # newer crun keeps compiled seccomp filters there
        return Scope(roots=[self.run_dir, self.leases], cgroup_marks=[self.name], pids=pids, shared=kept, caches=caches)

    @property
    def logs(self) -> Path:
        """Container logs, as a kubelet keeps them below /var/log/pods."""
        return self.root / "logs"

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def server_log(self) -> Path:
        return self.root / "server.log"

    def prepare(self, given: Config) -> None:
        """Write the configuration (handlers and CNI plugins as in ``given``) and the CNI network."""
        for directory in (self.run_dir, self.root / "state", self.root / "cni", self.leases, self.logs):
            directory.mkdir(mode=0o700)
        self.logs.chmod(0o755)
        settings = [
            "[server]",
            f"state_dir = {toml_value(self.root / 'state')}",
            f"run_dir = {toml_value(self.run_dir)}",
            "[network]",
            f"conf_dir = {toml_value(self.root / 'cni')}",
            f"bin_dirs = {toml_value(given.network.bin_dirs)}",
            "[runtime]",
            f"default_handler = {toml_value(given.runtime.default_handler)}",
        ]
        for name, handler in given.runtime.handlers.items():
            settings += [f"[runtime.handlers.{toml_value(name)}]", f"plugin = {toml_value(handler.plugin)}"]
            settings += [f"enabled = {toml_value(handler.enabled)}", f"options = {toml_value(handler.options)}"]
        self.config_file.write_text("\n".join(settings) + "\n")
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": _SUBNET}]]}
        plugin = {"type": "bridge", "bridge": self.bridge, "isGateway": False, "ipMasq": False, "ipam": ipam}
        network = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]}
        (self.root / "cni" / "10-demo.conflist").write_text(json.dumps(network, indent=2))

    @property
    def server(self) -> PrivateServer:
        """The server to be started."""
        return PrivateServer(self.config_file, self.root, stop_timeout=_STOP_TIMEOUT)


@asynccontextmanager
async def private_host() -> AsyncIterator[DemoHost]:
    """A DemoHost whose directory, bridge and cgroups are gone afterwards."""
    host = DemoHost(Path(tempfile.mkdtemp(prefix="cri-bridge-demo-")))
    try:
        yield host
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 20):
            remove_bridge(host.bridge)
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(host.root, ignore_errors=True))


@asynccontextmanager
async def parent_cgroup(path: str) -> AsyncIterator[None]:
    """The cgroup above the pods' own, which a kubelet makes and keeps."""
    await anyio.to_thread.run_sync(cgroups.create, path)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(cgroups.remove, path)


@asynccontextmanager
async def parent_slice(name: str) -> AsyncIterator[None]:
    """The same with the systemd driver: a slice, which systemd would make for its first pod but never end by itself."""
    await _systemctl("start", f"{name}.slice")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await _systemctl("stop", f"{name}.slice")


async def _systemctl(verb: str, unit: str) -> None:
    done = await run([shutil.which("systemctl") or "systemctl", verb, unit], timeout=_STOP_TIMEOUT)
    if done.returncode:
        raise HostError(f"systemctl can't {verb} {unit}: {done.stderr.decode(errors='replace').strip()}")


@asynccontextmanager
async def running_server(host: DemoHost, config: Config) -> AsyncIterator[int]:
    """The server's pid, once it answers; server and monitor are ended with the block."""
    server = host.server
    try:
        await anyio.to_thread.run_sync(server.start)
        assert server.pid is not None
        yield server.pid
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _STOP_TIMEOUT + 10):
            await anyio.to_thread.run_sync(server.stop)
            await end_monitor(config.monitor.socket)
