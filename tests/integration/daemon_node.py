"""A node for the whole daemon: a private server with its monitor, a CNI network of its own, busybox images, and a kubelet's calls."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

import anyio
from anyio.to_thread import run_sync

import bridge
from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, connect
from bridge.config_docs import toml_value
from bridge.errors import BridgeError
from bridge.host import cgroups, mounts
from bridge.monitor.client import MonitorClient
from bridge.testing.images import Layout, busybox_layer
from bridge.testing.leaks import Scope
from bridge.testing.private_server import remove_bridge
from tests.integration import pod_cgroups

IMAGE = "localhost/busybox:latest"
USR1_IMAGE = "localhost/stops-by-usr1:latest"
CNI_BIN = Path("/usr/lib/cni")
_SOURCE = Path(bridge.__file__).parent.parent
_SOURCES = [str(path) for path in (_SOURCE, *sorted(_SOURCE.parent.glob("plugins/*/src")))]
_PYTHONPATH = os.pathsep.join(dict.fromkeys([*_SOURCES, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
_READY_SECONDS = 60.0
_END_SECONDS = 60.0


def environment() -> dict[str, str]:
    """In which the command runs from this source tree. The variable CRIU names a criu that is not in PATH."""
    criu = os.environ.get("CRIU", "")
    search = f"{os.path.dirname(criu)}:{os.environ['PATH']}" if criu else os.environ["PATH"]
    return {**os.environ, "PYTHONPATH": _PYTHONPATH, "PATH": search}


class ServerProcess(Protocol):
    """What a test does with a server's process; subprocess.Popen is one."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...

    def terminate(self) -> None: ...


Start = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], ServerProcess]
_forking: list[Start] = []


@contextlib.contextmanager
def forking(start: Start) -> Iterator[None]:
    """Have nodes start their servers by ``start``, which need not import anything, while the block runs."""
    _forking.append(start)
    try:
        yield
    finally:
        _forking.remove(start)


class DaemonNode:
    """Everything below ``root``; ``name`` marks the bridge and the cgroups that are its own. Made by ``daemon_node``.

    ``handlers`` names runc-like binaries, or a plugin and its options. ``runtime``, ``network`` and ``stats`` are further lines of those
    sections of its configuration. ``prepare`` writes files below the root and returns more such lines, and some for each handler.
    """

    def __init__(
        self,
        root: Path,
        *,
        cni: bool = True,
        handlers: Mapping[str, str | tuple[str, Mapping[str, Any]]] | None = None,
        cni_bin: Path = CNI_BIN,
        runtime: Sequence[str] = (),
        network: Sequence[str] = (),
        stats: Sequence[str] = (),
        prepare: Callable[[Path], tuple[str, str]] | None = None,
        patience: float = 5.0,
    ) -> None:
        self.root = root
        self._lines = prepare(root) if prepare is not None else ("", "")
        self.name = f"cbt{secrets.token_hex(4)}"
        self.handlers = handlers or {"runc": "runc", "crun": "crun"}
        self.cni_bin = cni_bin
        self.runtime = runtime
        self.network = network
        self.stats = stats
        self.patience = patience
        self.environment: dict[str, str] = {}
        self.starting: Start = _start
        self.process: ServerProcess | None = None
        octet = secrets.randbelow(250) + 2
        self.subnets = [f"10.249.{octet}.0/24", f"fd00:cb:{octet}::/64"]
        for name in ("run", "state", "cni", "ipam", "logs", "layout"):
            (root / name).mkdir(exist_ok=True)
        if cni:
            self.write_cni()
        self.config_file.write_text(self._config())
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(root / "notify"))

    @property
    def socket(self) -> Path:
        return self.root / "run" / "cri-bridge.sock"

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def server_log(self) -> str:
        return (self.root / "server.log").read_text(errors="replace")

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def monitor_socket(self) -> Path:
        return self.root / "run" / "monitor.sock"

    @property
    def monitor(self) -> int:
        """The monitor's pid."""
        return int(_aside(_monitor_pid, self.monitor_socket))

    def _config(self) -> str:
        lines = ["[security]", f"seccomp_profile_root = {toml_value(self.root / 'seccomp')}"]
        lines += ["[server]", f"state_dir = {toml_value(self.root / 'state')}", f"run_dir = {toml_value(self.root / 'run')}"]
        lines += [
            'log_level = "debug"',
            f"shutdown_timeout = {self.patience}",
            f"undo_timeout = {2 * self.patience}",
            "[network]",
            f"conf_dir = {toml_value(self.root / 'cni')}",
        ]
        lines += [
            f"bin_dirs = {toml_value([self.cni_bin])}",
            *self.network,
            "[stats]",
            *self.stats,
            "[runtime]",
            f"default_handler = {toml_value(next(iter(self.handlers)))}",
        ]
        lines += [*self.runtime, self._lines[0]]
        for name, chosen in self.handlers.items():
            plugin, options = ("runc", {"path": chosen}) if isinstance(chosen, str) else chosen
            lines += [f"[runtime.handlers.{name}]", f"plugin = {toml_value(plugin)}"]
            lines += [*(f"options.{key} = {toml_value(value)}" for key, value in options.items()), self._lines[1]]
        return "\n".join(lines) + "\n"

    def write_cni(self) -> None:
        ranges = [[{"subnet": subnet}] for subnet in self.subnets]
        ipam = {
            "type": "host-local",
            "dataDir": str(self.root / "ipam"),
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        plugins: list[dict[str, Any]] = [{"type": "bridge", "bridge": self.name, "isGateway": True, "hairpinMode": True, "ipam": ipam}]
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
        conf = {"cniVersion": "1.0.0", "name": self.name, "plugins": plugins}
        fresh = self.root / "conflist.new"
        fresh.write_text(json.dumps(conf))
        fresh.rename(self.root / "cni" / "10-test.conflist")

    def scope(self) -> Scope:
        """What pods use and must give back, and the processes that serve them."""
        leases = self.root / "ipam" / self.name
        run = self.root / "run"
        kept = [leases, run / "sandboxes", *(leases / name for name in ("lock", "last_reserved_ip.0", "last_reserved_ip.1"))]
        roots = [run, self.root / "ipam", self.root / "state" / "images" / "snapshots"]
        pids = [self.process.pid, self.monitor] if self.process is not None and self.process.poll() is None else []
        caches = [run / "runtimes" / "crun" / ".cache"]  # newer crun keeps compiled seccomp filters there
        return Scope(roots=roots, bridges=[self.name], cgroup_marks=[self.name], pids=pids, shared=kept, caches=caches)

    def spawn(self) -> None:
        """Start the server and don't wait for it."""
        given = {**environment(), "NOTIFY_SOCKET": str(self.root / "notify"), **self.environment}
        argv = ["--config", str(self.config_file), "serve"]
        with contextlib.suppress(BlockingIOError):
            while self._notify.recv(256, socket.MSG_DONTWAIT):
                pass
        with (self.root / "server.log").open("ab") as log:
            self.process = self.starting(argv, given, log)

    def start(self) -> None:
        """Start the server and block until it has told its service manager that it is ready."""
        self.spawn()
        assert self.process is not None
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if select.select([self._notify], [], [], 0.05)[0] and b"READY=1" in self._notify.recv(256):
                return
            assert self.process.poll() is None, f"the server ended with code {self.process.returncode}:\n{self.server_log[-4000:]}"
        raise AssertionError(f"the server is not ready after {_READY_SECONDS:g} s:\n{self.server_log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(_END_SECONDS)

    async def restart(self) -> None:
        """Start again, leaving the loop free."""
        await run_sync(self.start)

    async def kill_monitor(self, *, and_server: bool = False) -> int:
        """SIGKILL the monitor and wait until it has gone; its pid. Just before, ``and_server``, which would give its pipes to another."""
        pid = self.monitor
        pidfd = os.pidfd_open(pid)
        try:
            if and_server and self.process is not None:
                self.process.kill()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with anyio.fail_after(30):
                await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        return pid

    async def import_images(self) -> None:
        """Have the server take the images that tests use."""
        await _import(self)

    def write_images(self) -> Path:
        """An OCI layout with the images that tests use."""
        layer = busybox_layer(Path("/bin/busybox"))
        config = {"Cmd": ["sh"], "Env": ["PATH=/usr/bin:/bin"]}
        with Layout(self.root / "layout") as layout:
            layout.image(IMAGE, [layer], config=config)
            layout.image(USR1_IMAGE, [layer], config={**config, "StopSignal": "SIGUSR1"})
        return self.root / "layout"

    def end(self) -> None:
        """The end of server, monitor, containers, cgroups, mounts and bridge, whatever state a failed test left them in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.process = None  # and its descriptor, which a forked server has
        _aside(self._end_monitor)
        for pid in _working_below(self.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._notify.close()
        pod_cgroups.remove(pod_cgroups.top(self.name))
        _aside(mounts.unmount_tree, self.root)
        remove_bridge(self.name)
        shutil.rmtree(self.root)

    async def _end_monitor(self) -> None:
        with contextlib.suppress(BridgeError, OSError):
            async with MonitorClient.connect(self.monitor_socket, timeout=0.5) as client:
                await client.shutdown(force=True)


def _start(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> ServerProcess:
    """A fork if there is something to fork, and if it would import the same."""
    if _forking and env.get("PYTHONPATH") == _PYTHONPATH:
        return _forking[-1](argv, env, log)
    command = [sys.executable, "-m", "bridge", *argv]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


@contextlib.contextmanager
def daemon_node(**options: Any) -> Iterator[DaemonNode]:
    """A node whose server runs and has the images; nothing of it is left afterwards."""
    # Not below pytest's directory: a unix socket's path has at most 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="cbt-"))
    root.chmod(0o711)  # as /run and /var/lib: root of a pod's user namespace must be able to pass
    node = DaemonNode(root, **options)
    try:
        cgroups.layout.cache_clear()
        pod_cgroups.create(pod_cgroups.top(node.name))
        node.start()
        _aside(_import, node)
        yield node
    finally:
        node.end()


def _working_below(root: Path) -> list[int]:
    """Processes whose directory is below ``root``: shims, which outlive everybody."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd").startswith(f"{root}/"):
                    found.append(int(entry))
    return found


def _aside(work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run ``work`` in a loop of its own, also while one runs here."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, work, *args).result()


async def _monitor_pid(socket: Path) -> int:
    async with MonitorClient.connect(socket, timeout=10) as client:
        return client.pid


async def _import(node: DaemonNode) -> None:
    layout = await run_sync(node.write_images)
    async with connect(node.socket) as cri:
        await cri.admin.import_image(admin.ImportImageRequest(path=str(layout)))


def namespaces(
    *, network: pb.NamespaceMode = pb.NamespaceMode.POD, pid: pb.NamespaceMode = pb.NamespaceMode.CONTAINER
) -> pb.NamespaceOption:
    """As a kubelet asks for them by default: a PID namespace for each container."""
    return pb.NamespaceOption(network=network, pid=pid)


class Kubelet:
    """A kubelet's calls with few words; what it made is removed by ``clean``."""

    def __init__(self, node: DaemonNode, cri: CriClient, handler: str) -> None:
        self.node = node
        self.cri = cri
        self.handler = handler
        self.configs: dict[str, pb.PodSandboxConfig] = {}

    def pod_config(self, name: str = "", *, options: pb.NamespaceOption | None = None, **changes: Any) -> pb.PodSandboxConfig:
        name = name or f"pod{secrets.token_hex(4)}"
        directory = self.node.logs / name
        directory.mkdir(exist_ok=True)
        base: dict[str, Any] = {
            "metadata": pb.PodSandboxMetadata(name=name, namespace="default", uid=f"uid-{name}"),
            "hostname": name,
            "log_directory": str(directory),
            "linux": pb.LinuxPodSandboxConfig(
                cgroup_parent=pod_cgroups.of_pod(self.node.name, name),
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=namespaces() if options is None else options),
            ),
        }
        return pb.PodSandboxConfig(**{**base, **changes})

    async def run(self, name: str = "", *, config: pb.PodSandboxConfig | None = None, **options: Any) -> str:
        config = config or self.pod_config(name, **options)
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        pod = (await self.cri.runtime.run_pod_sandbox(request)).pod_sandbox_id
        self.configs[pod] = config
        return pod

    def container_config(
        self, name: str, command: str | Sequence[str], *, options: pb.NamespaceOption | None = None, memory: int = 0, **changes: Any
    ) -> pb.ContainerConfig:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        base: dict[str, Any] = {
            "metadata": pb.ContainerMetadata(name=name),
            "image": pb.ImageSpec(image=IMAGE),
            "command": argv,
            "log_path": f"{name}.log",
            "linux": pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(memory_limit_in_bytes=memory, cpu_shares=100),
                security_context=pb.LinuxContainerSecurityContext(namespace_options=namespaces() if options is None else options),
            ),
        }
        return pb.ContainerConfig(**{**base, **changes})

    async def create(self, pod: str, command: str | Sequence[str] = "exec sleep 1000", name: str = "app", **changes: Any) -> str:
        config = self.container_config(name, command, **changes)
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=self.configs[pod])
        return (await self.cri.runtime.create_container(request)).container_id

    async def start(self, container: str) -> None:
        await self.cri.runtime.start_container(pb.StartContainerRequest(container_id=container))

    async def started(self, pod: str, command: str | Sequence[str] = "exec sleep 1000", name: str = "app", **changes: Any) -> str:
        container = await self.create(pod, command, name, **changes)
        await self.start(container)
        return container

    async def exec(self, container: str, command: str | Sequence[str], *, timeout: int = 20) -> pb.ExecSyncResponse:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        return await self.cri.runtime.exec_sync(pb.ExecSyncRequest(container_id=container, cmd=argv, timeout=timeout))

    async def output(self, container: str, command: str) -> str:
        """What a command that must succeed says."""
        answer = await self.exec(container, command)
        assert answer.exit_code == 0, answer
        return answer.stdout.decode().strip()

    async def status(self, container: str) -> pb.ContainerStatus:
        answer = await self.cri.runtime.container_status(pb.ContainerStatusRequest(container_id=container))
        assert answer.status is not None
        return answer.status

    async def info(self, container: str) -> dict[str, Any]:
        answer = await self.cri.runtime.container_status(pb.ContainerStatusRequest(container_id=container, verbose=True))
        return dict(json.loads(answer.info["info"]))

    async def pod_status(self, pod: str) -> pb.PodSandboxStatus:
        answer = await self.cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
        assert answer.status is not None
        return answer.status

    async def pod_info(self, pod: str) -> dict[str, Any]:
        answer = await self.cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
        return dict(json.loads(answer.info["info"]))

    async def exited(self, container: str, *, timeout: float = 20) -> pb.ContainerStatus:
        """Its status once it has ended."""
        with anyio.fail_after(timeout):
            while (status := await self.status(container)).state is not pb.ContainerState.CONTAINER_EXITED:
                await anyio.sleep(0.02)
        return status

    async def stop(self, container: str, timeout: int = 10) -> None:
        await self.cri.runtime.stop_container(pb.StopContainerRequest(container_id=container, timeout=timeout))

    async def remove(self, container: str) -> None:
        await self.cri.runtime.remove_container(pb.RemoveContainerRequest(container_id=container))

    async def stop_pod(self, pod: str) -> None:
        await self.cri.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))

    async def remove_pod(self, pod: str) -> None:
        await self.cri.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        config = self.configs.get(pod)
        if config is not None and config.linux is not None:
            await run_sync(pod_cgroups.end_slice, config.linux.cgroup_parent)

    async def clean(self) -> None:
        """Stop and remove every pod of the server."""
        for pod in (await self.cri.runtime.list_pod_sandbox()).items:
            await self.stop_pod(pod.id)
            await self.remove_pod(pod.id)

    async def log(self, pod: str, name: str = "app", *, until: Callable[[list[str]], bool] = bool) -> list[str]:
        """The log's lines ("stream tag text", the time checked and cut off) once ``until`` is satisfied."""
        path = Path(self.configs[pod].log_directory) / f"{name}.log"
        with anyio.fail_after(30):
            while not until(lines := log_lines(path)):
                await anyio.sleep(0.02)
        return lines


def log_lines(path: Path) -> list[str]:
    """The whole lines of a CRI log without their times: a reader may see a part of the one that is being written."""
    lines, written = [], path.read_text() if path.exists() else ""
    for line in written[: written.rfind("\n") + 1].splitlines():
        stamp, rest = line.split(" ", 1)
        assert time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"), line
        lines.append(rest)
    return lines


def mark(seconds: int) -> str:
    """A time to sleep that no other process of the machine has in its command line."""
    return f"{seconds}.{time.time_ns() % 10**9:09}"


def processes(word: str) -> list[int]:
    """Processes whose command line has ``word`` among its arguments."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found
