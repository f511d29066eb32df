"""The server under test: a private one below a directory of its own, which may be killed, or one that runs already."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, connect
from bridge.config_docs import toml_value
from bridge.errors import Denied, HostError
from bridge.host import cgroups, mounts
from bridge.host.cgroup_paths import CgroupDriver
from bridge.testing.conformance.target import Target
from bridge.testing.hierarchies import hugetlb_for_crun
from bridge.testing.images import Layout, busybox_layer
from bridge.testing.leaks import Scope, Snapshot, difference, snapshot
from bridge.testing.pod_cgroups import PodCgroups
from bridge.testing.private_server import PrivateServer, end_monitor, kill_monitor, monitor_pid, remove_bridge

IMAGE = "localhost/cri-bridge-conformance:latest"
USR1_IMAGE = "localhost/cri-bridge-conformance-usr1:latest"
IMAGE_ENV = "FROM_IMAGE=yes"
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_CNI_PLUGINS = ("bridge", "host-local")
_TAIL = 12
_OURS = "10.247"
"""Private addresses that few use; each node takes a /24 of them."""


class Node:
    """A server, its socket, and what of the host is the suite's own. Made by ``opened``."""

    def __init__(self, target: Target, root: Path) -> None:
        self.target = target
        self.root = root
        self.name = f"cbc{secrets.token_hex(4)}"
        self.network = True
        self.pod_cgroups = PodCgroups(CgroupDriver.CGROUPFS)
        self.server: PrivateServer | None = None
        self.left_behind: Sequence[str] = ()
        self.stuck: set[str] = set()
        """Pods that could not be removed."""
        self._logs = root / "logs"
        self._logs.mkdir()

    @property
    def socket(self) -> Path:
        return self.target.socket or self.root / "run" / "cri-bridge.sock"

    @property
    def private(self) -> bool:
        """Whether the server is the suite's own, and may be killed."""
        return self.target.socket is None

    @property
    def monitor_socket(self) -> Path:
        return self.root / "run" / "monitor.sock"

    @property
    def seccomp_root(self) -> Path:
        """Where Localhost seccomp profiles are sought, in a private server."""
        return self.root / "seccomp"

    def log_directory(self, pod: str) -> Path:
        """A pod's, made here as a kubelet makes it."""
        made = self._logs / pod
        made.mkdir(exist_ok=True)
        return made

    def shared_directory(self, name: str) -> Path:
        """A directory of the host for a volume."""
        made = self.root / "volumes" / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    async def kill(self) -> None:
        """SIGKILL the server."""
        assert self.server is not None
        await run_sync(self.server.kill)

    async def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        assert self.server is not None
        await run_sync(self.server.stop)

    async def start(self) -> None:
        """Start it again and wait until it is ready."""
        assert self.server is not None
        await run_sync(self.server.start)

    async def kill_monitor(self) -> None:
        """SIGKILL the monitor."""
        await kill_monitor(self.monitor_socket)

    async def pids(self) -> list[int]:
        """Server and monitor; none of a server that isn't ours."""
        if self.server is None or self.server.pid is None:
            return []
        return [self.server.pid, *filter(None, [await monitor_pid(self.monitor_socket)])]

    def scope(self, pids: Sequence[int]) -> Scope:
        """What pods may use and must give back."""
        if not self.private:
            return Scope(roots=list(self.target.own_paths), cgroup_marks=[self.name])
        run, leases = self.root / "run", self.root / "ipam" / self.name
        kept = [run / "sandboxes", run / "tty", leases, leases / "lock", leases / "last_reserved_ip.0"]
        roots = [run, self.root / "ipam", self.root / "state" / "images" / "snapshots", *self.target.own_paths]
        caches = [path / ".cache" for path in run.glob("runtimes/*")]  # newer crun keeps compiled seccomp filters there
        return Scope(roots=roots, bridges=[self.name], cgroup_marks=[self.name], pids=pids, shared=kept, caches=caches)

    @property
    def outside(self) -> Scope:
        """What may exist while the server does, and no longer; not the files of its own directory, which are removed with that."""
        return Scope(roots=[self.root, *self.target.own_paths], bridges=[self.name], cgroup_marks=[self.name])

    async def left(self, scope: Scope, before: Snapshot, *, timeout: float = 10.0) -> Sequence[str]:
        """What is in ``scope`` and was not in ``before``, after a while for kernel and server to finish."""
        deadline = time.monotonic() + timeout
        without = [] if "descriptor" in before else ["descriptor"]
        while True:
            found = await run_sync(lambda: difference(before, snapshot(scope, without=without)))
            left = [line for line in found if not self._kept(line, scope)]
            if not left or time.monotonic() > deadline:
                return left
            await anyio.sleep(0.05)

    def _kept(self, line: str, scope: Scope) -> bool:
        """The bridge and a killed monitor's successor stay as long as the server; files, until their directory goes."""
        if self.root in scope.roots:
            return line.startswith(f"file: {self.root}/")
        return f" {self.monitor_socket} " in line or line == f"network device: {self.name}"

    def log_tail(self) -> str:
        """The server's last words; "" of one that isn't ours."""
        if self.server is None:
            return ""
        lines = self.server.log_tail(100).splitlines()
        return "\n".join([line for line in lines if "level=debug logger=bridge.api " not in line][-_TAIL:])

    def prepare(self) -> None:
        """Write what the private server needs."""
        for name in ("run", "state", "cni", "ipam", "seccomp"):
            (self.root / name).mkdir()
        bin_dirs = self.target.config.network.bin_dirs
        self.network = all(any((each / name).exists() for each in bin_dirs) for name in _CNI_PLUGINS)
        if self.network:
            subnet = f"{_OURS}.{secrets.randbelow(250) + 2}.0/24"
            ipam = {
                "type": "host-local",
                "dataDir": str(self.root / "ipam"),
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
            plugin = {"type": "bridge", "bridge": self.name, "isGateway": True, "hairpinMode": True, "ipam": ipam}
            conf = {"cniVersion": "1.0.0", "name": self.name, "plugins": [plugin]}
            (self.root / "cni" / "10-conformance.conflist").write_text(json.dumps(conf))
        (self.root / "config.toml").write_text("\n".join(self._config()) + "\n")
        self.server = PrivateServer(self.root / "config.toml", self.root)

    def _config(self) -> Iterator[str]:
        given = self.target.config
        yield from ("[server]", f"state_dir = {toml_value(self.root / 'state')}", f"run_dir = {toml_value(self.root / 'run')}")
        yield from ('log_level = "debug"', "shutdown_timeout = 5.0")
        yield from ("[network]", f"conf_dir = {toml_value(self.root / 'cni')}", f"bin_dirs = {toml_value(given.network.bin_dirs)}")
        yield from ("[security]", f"seccomp_profile_root = {toml_value(self.seccomp_root)}")
        yield from ("[runtime]", f"default_handler = {toml_value(self.target.name)}")
        runtime = given.runtime.model_dump(exclude={"handlers", "default_handler"}, exclude_unset=True, exclude_none=True)
        yield from (f"{key} = {toml_value(value)}" for key, value in runtime.items())
        for name in given.runtime.handlers:
            if name != self.target.name:
                yield from (f"[runtime.handlers.{toml_value(name)}]", "enabled = false")
                yield from _lines({"plugin": given.runtime.handlers[name].plugin})
        yield f"[runtime.handlers.{toml_value(self.target.name)}]"
        yield from _lines(self.target.handler.model_dump(exclude_none=True))

    async def import_images(self, cri: CriClient) -> None:
        """Have the server know the images of the specs. Raises HostError, CriError."""
        layout = await run_sync(self._write_images)
        await cri.admin.import_image(admin.ImportImageRequest(path=str(layout)))

    def _write_images(self) -> Path:
        busybox = next((path for path in _BUSYBOX if path.exists()), None)
        if busybox is None:
            raise HostError("there is no static busybox here to make an image of: apt-get install busybox-static")
        layer = busybox_layer(busybox)
        config = {"Cmd": ["sh"], "Env": ["PATH=/usr/bin:/bin", IMAGE_ENV], "WorkingDir": "/tmp", "User": "0"}
        with Layout(self.root / "layout") as layout:
            layout.image(IMAGE, [layer], config=config)
            layout.image(USR1_IMAGE, [layer], config={**config, "StopSignal": "SIGUSR1"})
        return self.root / "layout"

    async def forget_images(self) -> None:
        """Take them out of a server that isn't ours."""
        async with connect(self.socket) as cri:
            for name in (IMAGE, USR1_IMAGE):
                await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{key} = {toml_value(value)}"


@contextmanager
def opened(target: Target) -> Iterator[Node]:
    """A node whose server is ready and has the images. Blocks. Raises Denied, HostError, CriError.

    Nothing of a private one is left afterwards, whatever failed; ``left_behind`` of it then tells what was, after its server had ended.
    """
    if os.geteuid() != 0:
        raise Denied("the conformance suite needs root: pods are made of namespaces, mounts and cgroups")
    # Not below a long path: a unix socket's has at most 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="cbc-"))
    root.chmod(0o711)  # as /run and /var/lib: root of a pod's user namespace must be able to pass
    node = Node(target, root)
    try:
        with hugetlb_for_crun():
            before = snapshot(node.outside)
            try:
                with _serving(node):
                    yield node
            finally:
                cgroups.layout.cache_clear()
                node.left_behind = anyio.run(node.left, node.outside, before)
                anyio.run(mounts.unmount_tree, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _serving(node: Node) -> Iterator[None]:
    with ExitStack() as stack:
        if node.private:
            node.prepare()
            assert node.server is not None
            stack.callback(remove_bridge, node.name)
            stack.callback(anyio.run, end_monitor, node.monitor_socket)
            stack.callback(node.server.stop)
            node.server.start()
        anyio.run(_welcome, node)
        if not node.private:
            stack.callback(anyio.run, node.forget_images)
        top = node.pod_cgroups.top(node.name)
        node.pod_cgroups.create(top)
        stack.callback(node.pod_cgroups.remove, top)
        yield


async def _welcome(node: Node) -> None:
    async with connect(node.socket, wait=5) as cri:
        linux = (await cri.runtime.runtime_config()).linux
        systemd = linux is not None and linux.cgroup_driver == pb.CgroupDriver.SYSTEMD
        node.pod_cgroups = PodCgroups(CgroupDriver.SYSTEMD if systemd else CgroupDriver.CGROUPFS)
        await node.import_images(cri)
