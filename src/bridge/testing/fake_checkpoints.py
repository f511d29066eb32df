"""An in-memory stand-in for the image store's checkpoints (bridge.ports.checkpoints), over directories of its own."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from bridge.errors import CorruptData, HostError
from bridge.ports.checkpoints import DELETED, DIFF
from bridge.testing.fake_stores import Faults


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
        self.applied[rootfs] = (directory / DIFF).read_text()

    def forget(self, container_id: str) -> None:
        """What goes with a root filesystem."""
        shutil.rmtree(self.root / f"{container_id}.restore", ignore_errors=True)

    def left(self) -> list[str]:
        """Directories that exist."""
        return sorted(path.name for path in self.root.iterdir()) if self.root.exists() else []
