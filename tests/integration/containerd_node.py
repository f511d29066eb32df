"""A private containerd as a peer: of image archives, or with its CRI plugin of what a kubelet is told. Ends with the test."""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from benchmarks.containerd_config import Pods, containerd_toml
from bridge.client import connect
from bridge.testing.images import Layout, busybox_layer
from tests.integration import pod_cgroups
from tests.integration.daemon_node import DaemonNode, Kubelet

_PAUSE = "localhost/pause:latest"


class Containerd:
    """Its ``ctr``."""

    def __init__(self, root: Path) -> None:
        self.socket = root / "containerd.sock"

    async def images(self, *words: str) -> str:
        """The output of ``ctr images`` with ``words``."""
        done = await anyio.run_process(["ctr", "--address", str(self.socket), "images", *words])
        return done.stdout.decode()


@contextmanager
def containerd(root: Path) -> Iterator[Containerd]:
    """A running one below ``root``, which is made; without its CRI plugin."""
    with _running(root, None) as peer:
        yield peer


@asynccontextmanager
async def cri_peer(root: Path, node: DaemonNode) -> AsyncIterator[Kubelet]:
    """A kubelet of a private containerd, with runc, the node's network and its images; its pods are removed at the end."""
    with _running(root, Pods(_PAUSE, node.cni_bin, node.root / "cni")) as peer:
        with Layout(root / "pause") as layout:
            layout.image(_PAUSE, [busybox_layer(Path("/bin/busybox"))], config={"Entrypoint": ["/bin/busybox", "sleep", "86400"]})
        for directory in (root / "pause", node.root / "layout"):
            archive = root / f"{directory.name}.tar"
            with tarfile.open(archive, "w") as out:
                out.add(directory, ".")
            await anyio.run_process(["ctr", "--address", str(peer.socket), "--namespace", "k8s.io", "images", "import", str(archive)])
        async with connect(peer.socket) as client:
            kubelet = Kubelet(node, client, "")
            try:
                yield kubelet
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(60):
                    parents = [config.linux.cgroup_parent for config in kubelet.configs.values() if config.linux]
                    await kubelet.clean()
                    for parent in parents:  # which a kubelet removes, as it makes them
                        await run_sync(pod_cgroups.remove, parent)


@contextmanager
def _running(root: Path, pods: Pods | None) -> Iterator[Containerd]:
    root.mkdir()
    config = containerd_toml(root=root, run=root, socket=root / "containerd.sock", pods=pods)
    (root / "config.toml").write_text(config)
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(root / "config.toml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not (root / "containerd.sock").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd does not start:\n{(root / 'log').read_text()[-4000:]}")
            time.sleep(0.05)  # it has no other sign of being ready
        yield Containerd(root)
    finally:
        process.terminate()
        process.wait()
