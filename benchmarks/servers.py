"""Starting the two servers, each private: own roots, sockets, CNI configuration, bridge and addresses; same runtime, same image.

Both keep what a node keeps below /var/lib on the same disk, and what it keeps below /run on the same tmpfs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge._proto.runtime import v1 as cri

from .containerd_config import Pods, containerd_toml
from .images import PAUSE, WORKLOAD, write_layouts
from .rpc import Rpc, connect
from .workspace import Workspace

_STOP = 30.0  # seconds a server gets to end on SIGTERM


@dataclass(frozen=True)
class Options:
    """What both servers use: the runtime's binary and the directory of the CNI plugins."""

    runtime: Path
    cni_bin: Path
    handlers: str = ""
    """Further handlers of cri-bridge, as TOML."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    version: str
    rpc: Rpc
    directory: Path
    workspace: Workspace


def _write_cni(directory: Path, bridge: str, subnet: str) -> Path:
    """The conflist that both servers get: bridge, host-local and portmap; only names, addresses and directories differ."""
    conf_dir = directory / "cni"
    conf_dir.mkdir()
    ipam = {"type": "host-local", "dataDir": str(directory / "ipam"), "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ]
    (conf_dir / "10-bench.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": bridge, "plugins": plugins}, indent=1))
    return conf_dir


def _spawn(workspace: Workspace, name: str, argv: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in its own cgroup, its output in <name>/server.log."""
    directory = workspace.directory(name)
    with (directory / "server.log").open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory, env=env, start_new_session=True
        )
    workspace.adopt(name, process.pid)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(argv: list[str], env: dict[str, str] | None = None) -> None:
    """Run a set-up command. Raises RuntimeError with what it said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


@asynccontextmanager
async def _answering(workspace: Workspace, name: str, process: subprocess.Popen[bytes], socket: Path) -> AsyncIterator[Running]:
    """The server once it answers; ends it afterwards. A server that never answers shows its log."""
    directory = workspace.directory(name)
    async with AsyncExitStack() as stack:
        stack.callback(_end, process)
        try:
            rpc = await stack.enter_async_context(connect(socket, cri.VersionRequest()))
        except TimeoutError as exc:
            raise RuntimeError(f"{name} does not answer:\n{(directory / 'server.log').read_text()[-4000:]}") from exc
        version = await rpc.call("Version", cri.VersionRequest(), cri.VersionResponse)
        yield Running(name, f"{version.runtime_name} {version.runtime_version}", rpc, directory, workspace)


@asynccontextmanager
async def containerd(workspace: Workspace, options: Options) -> AsyncIterator[Running]:
    """A private containerd with its CRI plugin on, the images imported."""
    directory = workspace.directory("containerd")
    conf_dir = _write_cni(directory, workspace.bridge(0), "10.253.0.0/20")
    run = workspace.run_directory("containerd")
    pods = Pods(PAUSE, options.cni_bin, conf_dir, options.runtime)
    text = containerd_toml(root=directory, run=run, socket=run / "cri.sock", pods=pods)
    (directory / "config.toml").write_text(text)
    process = _spawn(workspace, "containerd", ["containerd", "--config", str(directory / "config.toml")])
    async with _answering(workspace, "containerd", process, run / "cri.sock") as running:
        for archive in write_layouts(workspace.directory("images")):
            _run(["ctr", "--address", str(run / "cri.sock"), "--namespace", "k8s.io", "images", "import", str(archive)])
        yield running


_BRIDGE_TOML = """[server]
socket = "{run}/cri.sock"
state_dir = "{dir}/state"
run_dir = "{run}"
[runtime]
default_handler = "runc"
cgroup_driver = "cgroupfs"
[runtime.handlers.runc]
plugin = "runc"
options.path = "{runtime}"
[runtime.handlers.crun]
enabled = false
[network]
conf_dir = "{cni_conf}"
bin_dirs = ["{cni_bin}"]
"""


def write_config(workspace: Workspace, options: Options) -> Path:
    """The configuration of a private cri-bridge with one handler."""
    directory, run = workspace.directory("cri-bridge"), workspace.run_directory("cri-bridge")
    conf_dir = _write_cni(directory, workspace.bridge(1), "10.254.0.0/20")
    config = directory / "config.toml"
    text = _BRIDGE_TOML.format(dir=directory, run=run, cni_bin=options.cni_bin, cni_conf=conf_dir, runtime=options.runtime)
    config.write_text(text + options.handlers)
    return config


@asynccontextmanager
async def cri_bridge(workspace: Workspace, options: Options) -> AsyncIterator[Running]:
    """A private cri-bridge server with its monitor, the image imported."""
    run = workspace.run_directory("cri-bridge")
    config = write_config(workspace, options)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "bridge", "--config", str(config)]
    process = _spawn(workspace, "cri-bridge", [*command, "serve"], env)
    async with _answering(workspace, "cri-bridge", process, run / "cri.sock") as running:
        archive = write_layouts(workspace.directory("images"))[0]
        _run([*command, "image", "import", "--name", WORKLOAD, str(archive)], env)
        yield running
