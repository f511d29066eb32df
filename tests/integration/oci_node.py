"""A host for the OCI backend: a real monitor, a real runtime, a busybox root filesystem, all in a directory of its own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bridge.generic.oci import OciOptions, dialect
from bridge.host import cgroups
from bridge.host.cgroup_paths import CgroupDriver, pod_cgroup
from bridge.monitor.client import MonitorClient
from bridge.monitor.starting import spawn
from bridge.oci.backend import OciBackend, open_backend
from bridge.oci.cli import OciSettings
from bridge.oci.options import settings as cli_settings
from bridge.ports.host import HostContext, RuntimeTimeouts
from bridge.ports.runtime import ContainerIO, ContainerSpec, NamespacePaths, SandboxSpec
from bridge.testing.hierarchies import hugetlb_for_crun
from tests.integration import odd_runtime, pod_cgroups

APPLETS = ("sh", "sleep", "echo", "cat", "true", "false", "tty", "id", "kill", "mkdir", "tail", "head", "ps", "setsid", "grep", "dd")


def make_rootfs(root: Path) -> Path:
    """A root filesystem with the host's static busybox."""
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in (*APPLETS, "stty"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


class OciNode:
    """The host; ``context()`` is what its handlers get. "odd-runc" is runc behind a command line that is nothing like it."""

    def __init__(self, root: Path, runtime: str) -> None:
        self.root = root
        self.odd = runtime.startswith("odd-")
        self.runtime = runtime.removeprefix("odd-")
        self.rootfs = make_rootfs(root / "rootfs")
        self.socket = root / "monitor.sock"
        self.client: MonitorClient | None = None
        self.cgroup = pod_cgroups.top(f"cbt{secrets.token_hex(4)}")
        self.timeouts = RuntimeTimeouts(probe=60, trial=60)  # the tests share their machine

    def context(self) -> HostContext:
        def monitor() -> MonitorClient:
            assert self.client is not None
            return self.client

        return HostContext(monitor, self.root / "state", self.root, self.root / "cache", pod_cgroups.DRIVER, timeouts=self.timeouts)

    def settings(self) -> OciSettings:
        if self.odd:
            # The second of them can't tell by a directory what it knows.
            state = {"state_dir": ""} if self.runtime == "crun" else {}
            program = odd_runtime.write(self.root, self.runtime)
            options = OciOptions.model_validate({**odd_runtime.OPTIONS, **state, "path": str(program)})
            return cli_settings(self.runtime, options, self.context(), dialect(options))
        path = shutil.which(self.runtime)
        assert path is not None
        root, systemd = self.root / "state" / self.runtime, pod_cgroups.DRIVER is CgroupDriver.SYSTEMD
        return OciSettings(handler=self.runtime, path=Path(path), root=root, systemd_cgroup=systemd, timeouts=self.timeouts)

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[OciBackend]:
        """A server's life: connect to the monitor and open the handler."""
        async with MonitorClient.connect(self.socket) as client:
            self.client = client
            try:
                async with open_backend(self.settings(), self.context()) as backend:
                    yield backend
            finally:
                self.client = None

    def pod(self, name: str = "", *, shared_pid: bool = False) -> SandboxSpec:
        ident = f"{name or 'pod'}-{secrets.token_hex(16)}"
        state_dir = self.root / ident
        state_dir.mkdir()
        pause = self.oci(ident, ["/bin/sleep", "1000"], pid="own") if shared_pid else None
        return SandboxSpec(
            id=ident,
            name="pod",
            namespace="default",
            uid="uid",
            hostname="pod",
            state_dir=state_dir,
            namespaces=NamespacePaths(),
            shared_pid=shared_pid,
            cgroup_parent=self.cgroup,
            oci=pause,
        )

    def oci(self, ident: str, args: list[str], *, pid: str = "own", tty: bool = False, **linux: Any) -> dict[str, Any]:
        namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]
        if pid != "host":
            namespaces.append({"type": "pid"} if pid == "own" else {"type": "pid", "path": pid})
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
        ]
        process = {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "noNewPrivileges": True, "terminal": tty}
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.rootfs)},
            "process": process,
            "mounts": mounts,
            "linux": {"namespaces": namespaces, "cgroupsPath": pod_cgroups.of_container(self.cgroup, "cri-bridge", ident), **linux},
        }

    def container(self, pod: SandboxSpec, args: list[str], *, io: ContainerIO | None = None, **oci: Any) -> ContainerSpec:
        ident = secrets.token_hex(32)
        bundle = pod.state_dir / ident
        bundle.mkdir()
        log = ContainerIO(log_path=bundle / "log", terminal=oci.get("tty", False))
        return ContainerSpec(ident, pod.id, bundle, self.oci(ident, args, **oci), io or log)

    def log(self, spec: ContainerSpec) -> list[str]:
        """The text of each log entry."""
        written = (spec.bundle / "log").read_text()
        return [line.split(" ", 3)[3] for line in written[: written.rfind("\n") + 1].splitlines()]

    def directories(self) -> list[Path]:
        return [d for d in cgroups.layout().directories(pod_cgroup(self.cgroup, pod_cgroups.DRIVER)) if d.exists()]

    def leftovers(self) -> list[str]:
        """Cgroups below the pod's, runtime state, exec files."""
        found = [str(child) for directory in self.directories() for child in directory.iterdir() if child.is_dir()]
        found += [str(path) for path in (self.root / "state" / self.runtime).glob("[!.]*")]
        return found + [str(path) for path in self.root.glob("pod-*/*/exec-*")]


@contextlib.asynccontextmanager
async def oci_node(root: Path, runtime: str) -> AsyncIterator[OciNode]:
    """A node whose every process, cgroup and mount is gone afterwards."""
    with hugetlb_for_crun():
        node = OciNode(root, runtime)
        pod_cgroups.create(node.cgroup)
        try:
            await spawn(node.socket, log_file=root / "monitor.log", log_level="debug")
            try:
                yield node
            finally:
                await end_monitor(node)
        finally:
            cgroups.layout.cache_clear()  # another suite may have mounted a hierarchy meanwhile, which the runtime used too
            pod_cgroups.remove(node.cgroup)


async def end_monitor(node: OciNode) -> None:
    async with MonitorClient.connect(node.socket) as client:
        for task in await client.tasks():
            if task.exit is None:
                await client.kill(task.id, signal.SIGKILL)
                await client.wait(task.id)
        await client.shutdown(force=True)
