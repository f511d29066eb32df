"""An in-memory stand-in for the image store's checkpoints (bridge.ports.checkpoints), over directories of its own; and a backend whose
pods are checkpointed as one."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from bridge.errors import CorruptData, HostError, RuntimeFailed
from bridge.ports.checkpoints import DELETED, DIFF
from bridge.ports.runtime import SandboxKind, SandboxSpec
from bridge.testing.fake_stores import Faults
from bridge.testing.fakes import FakeBackend, FakeSandbox


class FakeCheckpoints:
    """Archives are real; a difference is one file, which says whose it is, ``applied`` is what was done to root filesystems,
    ``images`` the archives of images that are checkpoints."""

    def __init__(self, root: Path) -> None:
        self.faults = Faults()
        self.root = root
        self.applied: dict[Path, str] = {}
        self.images: dict[str, Path] = {}

    async def begin(self, container_id: str) -> Path:
        """An empty directory."""
        await self.end(container_id)
        directory = self.root / f"{container_id}.checkpoint"
        directory.mkdir(parents=True)
        return directory

    async def end(self, container_id: str) -> None:
        """Remove it, and what was unpacked."""
        shutil.rmtree(self.root / f"{container_id}.checkpoint", ignore_errors=True)
        self.forget(container_id)

    async def write_diff(self, container_id: str, directory: Path) -> None:
        """Say whose it is."""
        await self.faults.passing("write_diff", HostError("the disk is broken"))
        (directory / DIFF).write_text(container_id)
        (directory / DELETED).write_text(json.dumps(["/gone"]))

    async def pack(self, directory: Path, location: Path) -> None:
        """A tar."""
        await self.faults.passing("pack", HostError("the disk is full"))
        with tarfile.open(location, "w") as archive:
            archive.add(directory, ".")

    async def unpack(self, container_id: str, location: Path) -> Path:
        """Its content."""
        directory = self.root / f"{container_id}.restore"
        directory.mkdir(parents=True)
        try:
            with tarfile.open(location) as archive:
                archive.extractall(directory, filter="data")
        except tarfile.TarError as exc:
            raise CorruptData(f"the layer's archive is refused: {exc}") from exc
        return directory

    async def named(self, image_id: str) -> str:
        """A name for those of ``images``."""
        return "app" if image_id in self.images else ""

    async def copy(self, container_id: str, image_id: str) -> Path:
        """The content of its archive."""
        return await self.unpack(container_id, self.images[image_id])

    async def apply(self, directory: Path, rootfs: Path) -> None:
        """Remember it."""
        await self.faults.passing("apply", CorruptData("the difference is damaged"))
        self.applied[rootfs] = (directory / DIFF).read_bytes().decode(errors="replace") if (directory / DIFF).exists() else ""

    def forget(self, container_id: str) -> None:
        """What goes with a root filesystem."""
        shutil.rmtree(self.root / f"{container_id}.restore", ignore_errors=True)

    def left(self) -> list[str]:
        """Directories that exist."""
        return sorted(path.name for path in self.root.iterdir()) if self.root.exists() else []


class WholeSandbox(FakeSandbox):
    """One that is written down as a whole, with what ran in it."""

    restored = ""

    async def checkpoint_pod(self, images: Path, *, timeout: float) -> None:
        """Write down its pid and its containers'."""
        await self._backend.faults.passing(
            "checkpoint_pod", RuntimeFailed(handler="fake", verb="checkpoint", exit_code=1, log_tail=["runsc"])
        )
        pids = sorted(each.pid or 0 for each in self._backend.containers.values() if each.spec.sandbox_id == self.id)
        (images / "pod").write_text(f"pod of {pids}")


class WholePods(FakeBackend):
    """A backend whose pods are WholeSandboxes."""

    def __init__(self) -> None:
        super().__init__(SandboxKind.CONTAINER)

    async def create_sandbox(self, spec: SandboxSpec) -> WholeSandbox:
        """Add a sandbox, that of a checkpoint if there is one."""
        await self.faults.passing("create_sandbox", RuntimeFailed(handler="fake", verb="restore", exit_code=1))
        sandbox = WholeSandbox(self, spec)
        if spec.restore is not None:
            sandbox.restored = (spec.restore / "pod").read_text()
        self.sandboxes[spec.id] = sandbox
        return sandbox
