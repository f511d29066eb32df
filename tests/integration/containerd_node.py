"""A private containerd without its CRI plugin, as a peer that reads and writes image archives. Ends with the test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

_CONFIG = """version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/ttrpc.sock"
"""


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
    """A running one below ``root``, which is made."""
    root.mkdir()
    (root / "config.toml").write_text(_CONFIG.format(root=root))
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
